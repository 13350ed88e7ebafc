"""``oci.db`` and the copies from which it can be rebuilt."""
