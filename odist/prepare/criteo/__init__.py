"""Raw Criteo rows to a store."""
