"""The server as processes: `workers` and their `ports`, and `tls`; it knows nothing of models and engines."""
