"""From a byte stream to a directory."""
