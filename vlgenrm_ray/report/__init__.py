"""Reports of runs: summary, lineage and trace, curves, exports."""
