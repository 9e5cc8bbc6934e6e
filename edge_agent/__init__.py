"""Face-presence agent for infrared cameras."""

__version__ = "0.1.0"
