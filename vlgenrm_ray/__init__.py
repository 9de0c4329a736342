"""VL-GenRM on Ray: a vision-language generative reward model, made, improved and put to work."""

__version__ = "0.1.0"
