"""Shared fixtures. Test code that is shared lives in `tests/fakes` and is imported by that name."""
