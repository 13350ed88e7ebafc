"""From a byte stream to a directory.

Modules that run in the child processes do without typing at load time (hence ``TYPE_CHECKING = False``): importing it
takes longer than unpacking or verifying a small layer.
"""
