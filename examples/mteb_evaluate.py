"""Evaluate a CrossEncoder with MTEB on texts of your own. Needs: pip install crossrank mteb."""

import mteb
from datasets import Dataset
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
from mteb.abstasks.task_metadata import TaskMetadata

from crossrank.integrations.mteb import CrossrankCrossEncoder

texts = [
    "Berlin is well known for its museums.",
    "The motorway was closed on Sunday.",
    "Berlin had a population of 3,520,031 registered inhabitants in 2016.",
]
# Query -> position of the text that answers it.
relevant = {"how many people live in berlin": 2, "what is berlin known for": 0, "size of the capital": 2}


class Berlin(AbsTaskRetrieval):
    """Three queries with the same candidates."""

    metadata = TaskMetadata(
        name="Berlin",
        description="Which text answers a question about Berlin?",
        type="Reranking",
        main_score="ndcg_at_10",
        dataset={"path": "local", "revision": "1"},
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        category="t2t",
        modalities=["text"],
    )

    def load_data(self, num_proc: int | None = None, **_: object) -> None:
        """Make the dataset from the texts above."""
        names = [f"text {i}" for i in range(len(texts))]
        split = RetrievalSplitData(
            queries=Dataset.from_dict({"id": list(relevant), "text": list(relevant)}),
            corpus=Dataset.from_dict({"id": names, "text": texts, "title": [""] * len(texts)}),
            relevant_docs={query: {names[position]: 1} for query, position in relevant.items()},
            top_ranked=dict.fromkeys(relevant, names),
        )
        self.dataset = {"default": {"test": split}}
        self.data_loaded = True


# For a task of MTEB: mteb.evaluate(model, mteb.get_tasks(["AskUbuntuDupQuestions"]))
[result] = mteb.evaluate(CrossrankCrossEncoder("builtin"), Berlin(), cache=None)
scores = result.scores["test"][0]
for name in ("map_at_10", "mrr_at_10", "ndcg_at_10"):
    print(f"{scores[name]:.4f}", name)
