"""sentence-transformers' evaluator and miner, MTEB and BEIR, given crossrank's CrossEncoder for their own."""

from __future__ import annotations

import numpy as np
from beir.reranking import Rerank
from datasets import Dataset
from example import run_example
from mteb import CrossEncoderProtocol
from sentence_transformers import SentenceTransformer
from sentence_transformers.cross_encoder.evaluation import CrossEncoderRerankingEvaluator
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from sentence_transformers.util import mine_hard_negatives
from tokenizers import Tokenizer

from crossrank import CrossEncoder
from crossrank.integrations.mteb import CrossrankCrossEncoder

__all__ = ["run_example"]

encoder = CrossEncoder("builtin", precision="fp32")


def evaluate(samples, **options):
    """Return the metrics of sentence-transformers' evaluator for rerankers."""
    return {name: float(value) for name, value in CrossEncoderRerankingEvaluator(samples, **options)(encoder).items()}


def mine(queries, positives, corpus, tokenizer, **options):
    """Return what mine_hard_negatives makes, as rows; candidates come from random embeddings of the words."""
    vocabulary = Tokenizer.from_file(tokenizer)
    weights = np.random.default_rng(0).normal(size=(vocabulary.get_vocab_size(), 16)).astype(np.float32)
    words = SentenceTransformer(modules=[StaticEmbedding(vocabulary, embedding_weights=weights)], device="cpu")
    pairs = Dataset.from_dict({"query": queries, "answer": positives})
    mined = mine_hard_negatives(pairs, words, corpus=corpus, cross_encoder=encoder, verbose=False, **options)
    return [dict(row) for row in mined]


def rerank(corpus, queries, results, top_k, **options):
    """Return the results as BEIR reranks them."""
    return Rerank(encoder, **options).rerank(corpus, queries, results, top_k)


def protocol():
    """Tell whether MTEB takes the adapter for a cross-encoder, and what it says of itself."""
    model = CrossrankCrossEncoder("builtin", precision="fp32")
    meta = model.mteb_model_meta
    return [isinstance(model, CrossEncoderProtocol), meta.name, meta.max_tokens]


def score(queries, documents, batch_size):
    """Return the scores of batches as MTEB hands them over."""

    def batches(texts):
        return [{"text": texts[start : start + batch_size]} for start in range(0, len(texts), batch_size)]

    scores = CrossrankCrossEncoder("builtin", precision="fp32").predict(
        batches(queries), batches(documents), hf_split="test"
    )
    return [str(scores.dtype), scores.tolist()]
