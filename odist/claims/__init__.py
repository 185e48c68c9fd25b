"""From recipes to runs, tables, figures and verdicts."""
