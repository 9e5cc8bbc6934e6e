"""Cameras through V4L2, the Linux kernel's interface."""
