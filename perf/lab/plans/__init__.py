"""Build the TensorRT plans of every architecture, as `crossrank engine` does, and measure what each costs."""
