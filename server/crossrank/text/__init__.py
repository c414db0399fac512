"""Texts to packed pairs: `tokenizer` (token ids), `truncation` (what gives way), `encoding` (pairs of a model)."""
