"""Does it judge well: held-out pairs, their metrics, and the quality of the evidence."""
