"""Parts that every benchmark shares: requests, servers under measurement, progress, reports."""
