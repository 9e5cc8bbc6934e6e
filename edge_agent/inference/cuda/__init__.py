"""CUDA: context, memory, and the preprocess kernel."""
