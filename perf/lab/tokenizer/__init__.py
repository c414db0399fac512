"""The native tokenizer beside the tokenizers library."""
