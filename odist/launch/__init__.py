"""From a run folder to processes."""
