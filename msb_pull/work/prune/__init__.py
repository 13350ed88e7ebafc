"""Giving space back: what is to go, how it goes, and what a store takes."""
