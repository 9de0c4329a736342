"""VL-GenRM on Ray: training, serving and use of a vision-language generative reward model."""

__version__ = "0.1.0"
