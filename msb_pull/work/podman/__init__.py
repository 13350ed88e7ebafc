"""A read-only store for podman and buildah, made of links to the layers of ours (`additionalimagestores`)."""
