"""Images to a store."""
