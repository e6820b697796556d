"""What the README shows is run: its Python as it stands, and its commands as far as that they exist."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from convgru_fused import cli

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def commands():
    """The lines of all sh blocks, without comments."""
    lines = [line.split(" #")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


PYTHON, COMMANDS = blocks("python"), commands()


def test_there_is_something_to_run():
    assert PYTHON
    assert any(command.startswith("make ") for command in COMMANDS)
    assert any(command.startswith("python -m convgru_fused ") for command in COMMANDS)


@pytest.mark.parametrize("index", range(len(PYTHON)))
@pytest.mark.filterwarnings("error")
def test_python(index):
    """Each block stands alone: it is run in a namespace of its own."""
    exec(compile(PYTHON[index], f"README.md, block {index}", "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("command", COMMANDS)
def test_command_exists(capsys, command):
    """make by a dry run; ours by parsing its arguments, with --help in the place of work."""
    words = shlex.split(command)
    if words[0] == "make":
        result = subprocess.run(["make", "--dry-run", *words[1:]], cwd=ROOT, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
    elif words[:3] == ["python", "-m", "convgru_fused"]:
        with pytest.raises(SystemExit) as exit:
            cli.main([words[3], "--help"])
        assert exit.value.code == 0
        options = {word.split("=")[0] for word in words[4:] if word.startswith("--")}
        help = capsys.readouterr().out
        assert all(re.search(rf"{option}\b", help) for option in options)
    else:
        pytest.fail(f"a command of an unknown kind: {command}")


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\(([^):#]+)\)", README))))
def test_links_lead_to_files(path):
    assert (ROOT / path).exists()
