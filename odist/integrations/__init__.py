"""Teachers in other people's training loops: a room for each, imported where its package is installed."""
