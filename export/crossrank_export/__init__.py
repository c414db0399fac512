"""From any cross-encoder to an optimized bundle, a TensorRT engine and a Triton repository."""
