"""ONNX files, read, rewritten and written without the `onnx` package."""
