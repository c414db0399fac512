"""`crossrank bench plan`: machines for a load, from a model fitted to measurements."""
