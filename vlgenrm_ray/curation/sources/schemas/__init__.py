"""Schemas of data sets, one file each; the table is in `schema.py`."""
