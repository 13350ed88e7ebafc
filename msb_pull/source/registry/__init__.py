"""Registries: the distribution API, logins, blobs over several connections."""
