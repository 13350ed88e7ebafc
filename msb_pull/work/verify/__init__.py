"""Proves what the store holds, and repairs it."""
