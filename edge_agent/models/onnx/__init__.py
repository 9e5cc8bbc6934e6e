"""ONNX models: the contract that their tensors keep, and their graphs read, transformed and written.

Graphs are read with the `onnx` package, which is imported at the first use. `binding` does without it: the agent on
ONNX Runtime takes names, types and shapes from the session.
"""
