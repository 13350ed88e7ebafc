"""Fuzz targets: functions of one bytes argument that raise where a promise is broken. `run.py` runs them."""
