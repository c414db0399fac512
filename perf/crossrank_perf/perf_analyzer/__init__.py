"""`crossrank perf-analyzer`: NVIDIA's perf_analyzer against a Triton repository."""
