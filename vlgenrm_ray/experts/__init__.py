"""What a text claims about an image, and whether what the experts saw bears it out."""
