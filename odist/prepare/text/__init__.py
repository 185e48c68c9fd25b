"""WET, WARC, JSON lines and text to a token store."""
