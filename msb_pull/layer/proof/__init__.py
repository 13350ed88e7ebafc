"""Whether a directory and its record are what the diff_id says."""
