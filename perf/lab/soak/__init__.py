"""A server under mixed load for an hour: does its memory grow, does it slow down, is every answer right."""
