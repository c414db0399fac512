"""Everything about a machine with an NVIDIA GPU."""
