"""`crossrank rerank`: rank lines of files or of stdin in this process, no server needed."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from crossrank.errors import InvalidRequest, SetupError
from crossrank_server.commands.options import options_from_settings, settings_from_options
from crossrank_server.settings import ServeSettings

_FORWARDED = {"engine", "precision", "label", "threads", "offline", "cache_dir"}


@dataclass(frozen=True)
class _Document:
    source: str
    line: int
    text: str


@click.command()
@click.option("--query", "-q", required=True, help="What to rank the documents for.")
@click.argument("files", nargs=-1, type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.option("--model", "-m", default="builtin", show_default=True, help="As for crossrank serve.")
@click.option("--top-n", "-n", type=click.IntRange(min=1), help="Print only the best N.")
@click.option("--jsonl", is_flag=True, help='Read stdin as JSONL (strings or {"text": ...}); *.jsonl files always are.')
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
@click.option("--raw-scores", is_flag=True, help="Print logits instead of their sigmoid.")
@options_from_settings(ServeSettings, only=_FORWARDED)
def rerank(
    query: str,
    files: tuple[str, ...],
    model: str,
    top_n: int | None,
    jsonl: bool,
    as_json: bool,
    raw_scores: bool,
    **options: Any,
) -> None:
    """Rank documents: one a line, from FILES or stdin.

    \b
    Examples:
      crossrank rerank --query "who wrote faust" passages.txt --top-n 3
      cat passages.jsonl | crossrank rerank --query "who wrote faust" --jsonl --json
    """  # noqa: D301
    if not query.strip():
        raise InvalidRequest("--query is empty; give the text to rank the documents for")
    _require_unicode(query, "--query")
    documents = [document for name in files or ("-",) for document in _read(name, jsonl)]
    if not documents:
        raise SetupError("no documents: name files with one document a line, or pipe them in")
    settings = settings_from_options(ServeSettings, options)
    facts, ranked = _rank(query, documents, model, settings, top_n, raw_scores)
    (_print_json if as_json else _print_table)(facts, ranked)


def _rank(
    query: str, documents: list[_Document], model: str, settings: ServeSettings, top_n: int | None, raw: bool
) -> tuple[dict[str, Any], list[tuple[float, int, _Document]]]:
    """Return facts of the ranking, and (score, index, document) of the best documents."""
    # Not at the top: the other commands start without them.
    from crossrank import CrossEncoder
    from crossrank.cross_encoder.activations import sigmoid

    with CrossEncoder(
        model,
        engine=settings.engine,
        precision=settings.precision,
        threads=settings.threads or None,
        label=settings.label,
        local_files_only=settings.offline,
        cache_folder=settings.cache_dir,
    ) as encoder:
        pairs = [(query, document.text) for document in documents]
        prediction = encoder.predict(pairs, activation_fn="identity", return_details=True)
        facts = {
            "model": encoder.model_id,
            "tokens": int(prediction.tokens.sum()),
            "truncated_documents": prediction.truncated.nonzero()[0].tolist(),
        }
    logits = prediction.scores.tolist()
    # By logit, as the server has it: sigmoids of distinct logits may be equal.
    order = sorted(range(len(logits)), key=logits.__getitem__, reverse=True)[:top_n]
    return facts, [(logits[i] if raw else sigmoid(logits[i]), i, documents[i]) for i in order]


def _read(name: str, jsonl: bool) -> list[_Document]:
    try:
        content = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        lines = content.decode().removeprefix("\ufeff").split("\n")
    except UnicodeDecodeError as error:
        raise SetupError(f"{name}: byte 0x{content[error.start]:02x} at offset {error.start} is not UTF-8") from None
    is_jsonl = jsonl if name == "-" else jsonl or name.endswith((".jsonl", ".ndjson"))
    documents = []
    for number, line in enumerate(lines, 1):
        text = line.rstrip("\r")
        if text.strip():
            documents.append(_Document(name, number, _json_text(name, number, text) if is_jsonl else text))
    return documents


def _json_text(name: str, number: int, line: str) -> str:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise SetupError(f"{name}:{number} is not JSON: {error}") from None
    text = value.get("text") if isinstance(value, dict) else value
    if not isinstance(text, str):
        raise SetupError(f"{name}:{number} is neither a string nor an object with a text: {line[:80]}")
    _require_unicode(text, f"{name}:{number}")
    return text


def _require_unicode(text: str, where: str) -> None:
    """Refuse lone surrogates: JSON can escape them, and the shell's bytes that are not UTF-8 become such."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        surrogate = f"\\u{ord(text[error.start]):04x}"
        raise SetupError(
            f"{where} holds the lone surrogate {surrogate} at character {error.start}; give it as valid UTF-8"
        ) from None


def _print_json(facts: dict[str, Any], ranked: list[tuple[float, int, _Document]]) -> None:
    results = [
        {
            "index": i,
            "relevance_score": score,
            "document": {"text": document.text},
            "source": document.source,
            "line": document.line,
        }
        for score, i, document in ranked
    ]
    click.echo(json.dumps({**facts, "results": results}, ensure_ascii=False))


def _print_table(facts: dict[str, Any], ranked: list[tuple[float, int, _Document]]) -> None:
    # Lines are cut to fit a screen; what reads a pipe wants them whole.
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    for rank, (score, _, document) in enumerate(ranked, 1):
        line = f"{rank:>4}  {score:8.4f}  {document.source}:{document.line}  {document.text}"
        click.echo(line if len(line) <= width else line[: width - 3] + "...")
    truncated = len(facts["truncated_documents"])
    if truncated:
        click.echo(f"{truncated} document(s) were longer than the model's window and were truncated", err=True)
