"""Pulls one image into the store."""
