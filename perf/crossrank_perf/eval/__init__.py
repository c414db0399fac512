"""`crossrank eval`: ranking quality by TREC's measures."""
