"""Settings: read, checked, named and documented."""
