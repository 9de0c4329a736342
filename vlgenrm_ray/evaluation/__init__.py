"""Evaluation of judges: held-out pairs, metrics, quality of the evidence, benchmarks."""
