"""Tests that let other programs read the store."""
