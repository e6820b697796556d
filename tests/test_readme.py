"""What the README shows is run: its Python as it stands, and its commands as far as that they exist."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def commands():
    """The lines of all sh blocks, without comments."""
    lines = [line.split(" #")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


PYTHON, COMMANDS = blocks("python"), commands()


def run(*command):
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_there_is_something_to_run():
    assert PYTHON
    assert any(command.startswith("make ") for command in COMMANDS)
    assert any(command.startswith("python -m convgru_fused ") for command in COMMANDS)


@pytest.mark.parametrize("code", PYTHON, ids=[f"block-{i}" for i in range(len(PYTHON))])
def test_python(run_python, code):
    result = run_python(code, PYTHONWARNINGS="error")
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_command_exists(command):
    """make by a dry run; ours by parsing its arguments, with --help in the place of work."""
    words = shlex.split(command)
    if words[0] == "make":
        result = run("make", "--dry-run", *words[1:])
    elif words[:3] == ["python", "-m", "convgru_fused"]:
        result = run(sys.executable, "-m", "convgru_fused", words[3], "--help")
        options = {word.split("=")[0] for word in words[4:] if word.startswith("--")}
        assert all(re.search(rf"{option}\b", result.stdout) for option in options)
    else:
        pytest.fail(f"a command of an unknown kind: {command}")
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\(([^):#]+)\)", README))))
def test_links_lead_to_files(path):
    assert (ROOT / path).exists()
