"""The Python client of a crossrank server."""
