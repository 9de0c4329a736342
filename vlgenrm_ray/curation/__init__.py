"""Curation: the stages pool, responses, experts and preferences, from a data set to preference pairs (README.md)."""
