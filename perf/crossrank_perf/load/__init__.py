"""`crossrank bench load`: closed and open loops against a running server."""
