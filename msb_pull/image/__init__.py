"""Immutable values that parse and print: references, digests, manifests, platforms."""
