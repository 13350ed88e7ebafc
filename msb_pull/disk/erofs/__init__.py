"""Writes EROFS images: read-only file systems that Linux mounts, made from a tree that need not be on disk."""
