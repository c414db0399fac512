"""Convert texts to packed pairs: `tokenizer` (token ids), `truncation` (tokens to keep), `encoding` (whole pairs)."""
