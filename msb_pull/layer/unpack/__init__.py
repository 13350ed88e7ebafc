"""One stream into one directory, in a jailed child process."""
