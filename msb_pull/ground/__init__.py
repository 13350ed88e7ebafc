"""What every room stands on: errors, events, threads, text."""
