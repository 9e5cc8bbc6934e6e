"""Cameras by NVIDIA's jetson-utils."""
