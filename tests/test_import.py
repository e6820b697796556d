"""Importing is quick, silent and free of side effects; it works without the compiled extension too."""

import math
import shutil
import sys
from pathlib import Path

import pytest

import convgru_fused

PACKAGE = Path(convgru_fused.__file__).parent


def test_import_prints_nothing_and_takes_a_moment(run_python):
    """0.3 s beyond importing torch; the best of up to three, since other processes may be at work."""
    code = """
import time
import torch
start = time.perf_counter()
import convgru_fused
print(time.perf_counter() - start)
"""
    seconds = math.inf
    for _ in range(3):
        if seconds >= 0.3:
            result = run_python(code)
            assert result.returncode == 0 and result.stderr == ""
            seconds = float(result.stdout)  # and nothing else was printed
    assert seconds < 0.3


def test_import_brings_in_nothing_for_benchmarks_or_other_devices(run_python):
    code = """
import sys
import torch
before = set(sys.modules)
import convgru_fused
print(*sorted(set(sys.modules) - before), sep="\\n")
"""
    brought = run_python(code).stdout.split()
    assert "convgru_fused.functional" in brought
    assert {name.split(".")[0] for name in brought} - set(sys.stdlib_module_names) == {"convgru_fused"}
    ours = {name.removeprefix("convgru_fused.").split(".")[0] for name in brought if "." in name}
    assert not ours & {"bench", "cli", "models", "testing"}


def test_import_builds_nothing_and_writes_nothing(run_python, tmp_path):
    package = tmp_path / PACKAGE.name
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    before = sorted(package.rglob("*"))
    code = "import sys; sys.dont_write_bytecode = True; import convgru_fused; print(convgru_fused.__file__)"
    result = run_python(code, path=tmp_path)
    assert Path(result.stdout.strip()).parent == package
    assert sorted(package.rglob("*")) == before
    assert sorted(tmp_path.iterdir()) == [package]


@pytest.fixture
def without_extension(tmp_path):
    """A copy of the package as it is before it is built."""
    ignored = shutil.ignore_patterns("__pycache__", "*.so")
    shutil.copytree(PACKAGE, tmp_path / PACKAGE.name, ignore=ignored)
    return tmp_path


def test_everything_works_on_eager_without_the_extension(run_python, without_extension):
    code = """
import torch, convgru_fused, convgru_fused.testing
model = convgru_fused.ConvGRU(3, 4)
output, h_n = model(torch.zeros(2, 1, 3, 5, 5))
output.sum().backward()
print(convgru_fused.backends())
"""
    result = run_python(code, path=without_extension)
    assert result.returncode == 0, result.stderr
    *native, eager, _triton = result.stdout.splitlines()
    assert [line.split(maxsplit=2)[:2] for line in native] == [["cpu", "no"], ["cuda", "no"]]
    words = "the compiled extension is missing; build it with `pip install --no-build-isolation -e .`"
    assert all(words in line for line in native)
    assert eager.split()[:2] == ["eager", "yes"]


def test_naming_the_backend_that_is_missing_says_how_to_get_it(run_python, without_extension):
    code = "import convgru_fused\nwith convgru_fused.use_backend('cpu'): pass"
    result = run_python(code, path=without_extension)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == (
        "ValueError: name: backend 'cpu' is not available: the compiled extension is missing; build it with "
        "`pip install --no-build-isolation -e .`"
    )


def test_an_extension_that_does_not_load_is_reported(run_python, without_extension):
    (without_extension / PACKAGE.name / "_C.so").write_bytes(b"not a library")
    result = run_python("import convgru_fused; print(convgru_fused.backends())", path=without_extension)
    assert result.returncode == 0, result.stderr
    assert "the compiled extension does not load" in result.stdout
    assert "build it again for this torch" in result.stdout
