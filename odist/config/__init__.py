"""What can be configured: keys, reading them, nearest words."""
