"""Engines: vLLM, DeepSpeed and the libraries of detectors and matchers, each behind a small interface."""
