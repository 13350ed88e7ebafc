"""The operations on a store, each behind one function."""
