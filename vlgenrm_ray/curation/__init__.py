"""What is true about the images: the pool of questions, responses to them, and preferences by the experts' evidence."""
