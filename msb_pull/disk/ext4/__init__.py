"""Writes ext4 images: file systems that Linux mounts and writes, made from a tree that need not be on disk."""
