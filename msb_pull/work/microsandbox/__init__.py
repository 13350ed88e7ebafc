"""Hands images to Microsandbox, through the door that it has for that: ``msb load``."""
