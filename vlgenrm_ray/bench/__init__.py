"""Speed as ratios: one side against another on the same work, in one run."""
