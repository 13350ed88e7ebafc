"""Where bytes come from: manifests and blob streams behind one small interface."""
