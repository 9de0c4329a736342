"""Data on disk and its streaming: stage folders, images, Arrow records, progress."""
