"""Tar streams, read strictly."""
