"""Run the server as processes: `workers`, the `ports` they share, and `tls`. Knows nothing of models and engines."""
