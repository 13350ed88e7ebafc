"""The command line: options in, one call, a result and an exit code out."""
