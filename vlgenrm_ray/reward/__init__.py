"""Training of the generative reward model: critiques, selection, training, rounds."""
