"""What was trained, taken elsewhere: exported models, and predictions of raw rows."""
