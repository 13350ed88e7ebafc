"""The version, in a file that nothing else is in: it goes into requests, and the build reads it."""

__version__ = "0.1.0"
