"""Views: read-only stores for podman and buildah, made of links to the layers here (`additionalimagestores`)."""
