"""Pull container images into ready-to-mount, verifiable layer directories."""

__version__ = "0.1.0"
