"""Reads what lies in deploy/: YAML, the Dockerfile's stages, and `crossrank` command lines as the command reads them."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import yaml

from crossrank_server.cli import cli

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy"
DOCKERFILE = DEPLOY / "docker" / "Dockerfile"
DASHBOARDS = {
    name: json.loads((DEPLOY / "monitoring" / "grafana" / f"{name}.json").read_text(encoding="utf-8"))
    for name in ("gateway", "triton")
}
# Those of GPUs, which no server in the tests has; the dashboard's others are looked for in the real server.
# Source: https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/user_guide/metrics.html
GPU_METRICS = {"nv_gpu_utilization", "nv_gpu_memory_used_bytes"}


@dataclass(frozen=True)
class Stage:
    """One stage of the Dockerfile.

    Attributes:
        base: What it is built from, variables as written.
        instructions: Keyword and the rest, in order; lines that end with a backslash are joined.
    """

    base: str
    instructions: list[tuple[str, str]]

    def values(self, keyword: str) -> list[str]:
        """Return what follows a keyword, one entry for each time it is there."""
        return [value for name, value in self.instructions if name == keyword]

    def environment(self) -> dict[str, str]:
        """Return the variables of ENV."""
        return dict(pair.split("=", 1) for value in self.values("ENV") for pair in shlex.split(value))

    def ports(self) -> set[int]:
        """Return the ports of EXPOSE."""
        return {int(port) for value in self.values("EXPOSE") for port in value.split()}


def read_stages() -> dict[str, Stage]:
    """Return the Dockerfile's stages by name."""
    lines = [line for line in DOCKERFILE.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    stages: dict[str, Stage] = {}
    current: Stage | None = None
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        keyword, _, value = line.partition(" ")
        if keyword == "FROM":
            base, _, name = value.partition(" AS ")
            current = stages[name] = Stage(base, [])
        elif keyword and current is not None:
            current.instructions.append((keyword, value.strip()))
    return stages


def load_yaml(path: Path) -> Any:
    """Return the one document of a YAML file."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def read_command(words: Sequence[str]) -> click.Context:
    """Parse the arguments of `crossrank` as it does: unknown options, commands and values raise click.UsageError."""
    with cli.make_context("crossrank", list(words[:1])) as group:
        name, command, _ = cli.resolve_command(group, list(words[:1]))
        assert command is not None
        rest = list(words[1:])
        if isinstance(command, click.Group):
            name, command, rest = command.resolve_command(group, rest)
            assert command is not None
        return command.make_context(name, rest, parent=group)


def option_default(command: str, name: str) -> Any:
    """Return the default of an option of `crossrank <command>`."""
    found = cli.get_command(click.Context(cli), command)
    assert found is not None
    return next(parameter.default for parameter in found.params if parameter.name == name)


def metrics_in(dashboard: Any) -> set[str]:
    """Return the names of metrics that the panels of a Grafana dashboard ask for."""
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    return {name for expression in expressions for name in re.findall(r"\b(?:nv|crossrank|process)_\w+", expression)}


def locked_versions(path: Path) -> dict[str, set[str]]:
    """Return name -> versions of a lock file; one for each kind of platform may be there."""
    pins: dict[str, set[str]] = {}
    for name, version in re.findall(r"^([a-z0-9._-]+)==([^ ;]+)", path.read_text(encoding="utf-8"), re.MULTILINE):
        pins.setdefault(name, set()).add(version)
    return pins


def routes() -> set[str]:
    """Return the paths that a gateway answers."""
    from crossrank_server.http.app import create_app
    from crossrank_server.serving.pool import ModelPool
    from crossrank_server.serving.service import RerankService

    return set(
        create_app(RerankService(ModelPool([]), max_documents=1, timeout_s=1), max_body_bytes=1024).openapi()["paths"]
    )
