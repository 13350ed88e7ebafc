"""What lies on disk: names, staging, publishing, locks, rows."""
