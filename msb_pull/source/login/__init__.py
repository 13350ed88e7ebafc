"""Who gets which password: files, environment and programs in which it is kept."""
