"""Images in files: layouts and archives."""
