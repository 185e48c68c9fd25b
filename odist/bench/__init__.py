"""What the parts cost, as ratios within one run."""
