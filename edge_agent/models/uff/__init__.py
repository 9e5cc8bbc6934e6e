"""NVIDIA's UFF files, read and turned into ONNX."""
