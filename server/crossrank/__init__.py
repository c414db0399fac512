"""Cross-encoder rerankers in your own process: texts in, scores out, no torch.

`bundles` (models on disk) -> `text` (texts to token ids) -> `scheduling` (many callers, full batches) -> `engines`
(token ids to logits), with `native`, our own C++, below; `packed` is what they hand to each other.
"""
