"""From the layers of an image to one tree: as a tar, a directory, and whatever else reads the same tree."""
