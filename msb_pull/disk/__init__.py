"""Images of file systems, made from a tree without a program of others: one folder a format."""
