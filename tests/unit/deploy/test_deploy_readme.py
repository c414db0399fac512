"""The commands of deploy/README.md exist, with these options."""

from __future__ import annotations

import re
import shlex

import pytest

from tests.deploy_files import DEPLOY, ROOT, load_yaml, read_command, read_stages

TEXT = (DEPLOY / "README.md").read_text(encoding="utf-8")
BLOCKS = "\n".join(re.findall(r"^```bash\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)).replace("\\\n", " ")
LINES = [line for line in BLOCKS.splitlines() if line]


def crossrank_commands() -> list[list[str]]:
    found = [line for line in LINES if line.startswith("crossrank ")]
    found += [match for line in LINES if "docker run" in line for match in re.findall(r"crossrank engine .*", line)]
    found += re.findall(r"`(crossrank repository [^`]+)`", TEXT)
    found += [match for line in LINES for match in re.findall(r"(?:gateway-a|--) +(crossrank keys [^)]*)", line)]
    return [shlex.split(line)[1:] for line in found]


@pytest.mark.parametrize("words", crossrank_commands(), ids=" ".join)
def test_commands_take_these_options(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # `crossrank engine` wants a directory that exists; in the container it is the mounted one.
    (tmp_path / "tiny").mkdir()
    words = [str(tmp_path) if word == "/bundle" else word for word in words]
    assert read_command(words).params


def test_images_are_built_by_their_targets():
    built = [re.search(r"-f (\S+) --target (\w+) -t (\S+) \.", line) for line in LINES if "docker build" in line]
    assert len(built) == 2
    for match in built:
        assert match is not None
        assert (ROOT / match[1]).is_file()
        assert match[2] in read_stages()
        assert match[3] == f"crossrank-{match[2]}"


def test_values_set_on_the_command_line_are_in_the_chart():
    commands = [line for line in LINES if line.startswith("helm ")]
    names = [name for command in commands for name in re.findall(r"--set ([\w.]+)=", command)]
    assert (len(commands), len(names)) == (2, 7)
    (chart,) = {shlex.split(command)[3] for command in commands}
    values = load_yaml(ROOT / chart / "values.yaml")
    for name in names:
        value = values
        for part in name.split("."):
            value = value[part]


def test_the_gateway_container_is_started_as_its_entrypoint_reads():
    (run,) = (line for line in LINES if "crossrank-gateway serve" in line)
    params = read_command(run.partition("crossrank-gateway ")[2].split()).params
    assert params["models"] == ("builtin",)
    assert params["allow_anonymous"], "the image listens on every address"


def test_variables_of_compose_are_exported():
    compose = (DEPLOY / "compose.yaml").read_text(encoding="utf-8")
    exported = {name for line in LINES if line.startswith("export ") for name in re.findall(r"(\w+)=", line)}
    assert exported == set(re.findall(r"\$\{(\w+)", compose)) - {"GPUS"}


def test_the_profile_is_one_of_compose():
    services = load_yaml(DEPLOY / "compose.yaml")["services"].values()
    profiles = {profile for service in services for profile in service.get("profiles", [])}
    assert {match for line in LINES for match in re.findall(r"--profile (\w+)", line)} == profiles


def test_every_file_is_in_the_table():
    named = set(re.findall(r"^\| `([^`]+)` \|", TEXT, re.MULTILINE))
    assert all(any(DEPLOY.glob(name.rstrip("/"))) for name in named)
    top = {path.name for path in DEPLOY.iterdir()} - {"README.md"}
    assert top == {name.partition("/")[0] for name in named}
