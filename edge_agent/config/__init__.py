"""Reads, validates, names and documents the settings. Constructs no adapter."""
