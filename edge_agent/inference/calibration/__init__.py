"""INT8 from the user's own pictures."""
