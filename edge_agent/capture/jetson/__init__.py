"""Cameras through NVIDIA's jetson-utils."""
