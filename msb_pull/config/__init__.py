"""Settings: where each comes from, and what is built in."""
