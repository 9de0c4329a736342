"""Speed measured as ratios: one system against another on the same work, within one run."""
