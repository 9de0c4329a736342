"""Data on disk and how it streams: stage folders, images, Arrow records, progress."""
