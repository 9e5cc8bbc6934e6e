"""TensorRT: one runner per API generation, build, cache, proof; here or in a worker process."""
