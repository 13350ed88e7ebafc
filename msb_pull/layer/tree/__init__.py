"""The entries of one layer, written below one directory and nowhere else."""
