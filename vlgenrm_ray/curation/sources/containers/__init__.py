"""Containers of data sets, one file each; the table is in `container.py`."""
