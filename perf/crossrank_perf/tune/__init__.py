"""`crossrank tune`: the fastest engine configuration for a bundle on this machine."""
