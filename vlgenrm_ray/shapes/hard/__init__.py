"""The hard world: overlapping textured shapes, signs and clutter, with a language prior that holds in training only."""
