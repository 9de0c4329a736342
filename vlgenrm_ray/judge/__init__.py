"""How (image, question, response) becomes critiques and a reward. One implementation for every caller."""
