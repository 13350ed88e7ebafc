"""Whether an image is signed as its rule requires: documents in, verdict out, no network."""
