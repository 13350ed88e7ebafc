"""Registries: the distribution API, tokens, blobs over several connections."""
