"""Vision experts: extract the claims of a text and check them against the image.

Start at `pipeline.ExpertPipeline`, which the curation stage, the service and the tests use. README.md explains how a
claim is checked and how to add a detector, a kind of expert or a vocabulary.
"""
