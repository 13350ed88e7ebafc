"""The version, alone in a file: it goes into requests, and the build reads it."""

__version__ = "0.2.0.dev0"
