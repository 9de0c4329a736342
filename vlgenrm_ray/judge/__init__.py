"""The judge: critiques and a reward for (image, question, response), the same for every caller."""
