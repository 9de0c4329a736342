"""Make the judge better: critiques, selection by margin, training, rounds."""
