"""Export to podman: which images are shown in a view, and what podman must be told of it."""
