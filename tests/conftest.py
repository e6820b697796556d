"""What all tests share: the backends, new interpreters, and settings under which every run is the same."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import settings

import convgru_fused

settings.register_profile("deterministic", derandomize=True, database=None, deadline=None, max_examples=50)
settings.load_profile("deterministic")

# Every backend that is tested. Where one is missing its tests fail: continuous integration builds them all.
BACKENDS = ("eager", "cpu")


def pytest_addoption(parser):
    parser.addoption("--native-from", help="the folder that the package has to come from; make sanitize")


def pytest_configure(config):
    folder = config.getoption("--native-from")
    if folder and not Path(convgru_fused.__file__).is_relative_to(Path(folder).resolve()):
        pytest.exit(f"--native-from: expected convgru_fused in {folder}, got {convgru_fused.__file__}", 2)
    # The problems are small: a second thread would wait for the first, and for other processes.
    torch.set_num_threads(1)


def process_settings():
    """What a test could leave behind in the process, to the surprise of the next."""
    return {
        "threads": torch.get_num_threads(),
        "default dtype": torch.get_default_dtype(),
        "TF32": torch.backends.cudnn.conv.fp32_precision,
        "precision": convgru_fused.numerics.setting(),
        "gradients": torch.is_grad_enabled(),
    }


@pytest.fixture(autouse=True)
def _settings():
    """Every test begins with the same seed and leaves the settings of the process as they were."""
    before = process_settings()
    torch.manual_seed(0)
    yield
    assert process_settings() == before


@pytest.fixture(params=BACKENDS)
def backend(request):
    """The name of each backend in turn; everything in the test runs on it."""
    with convgru_fused.use_backend(request.param):
        yield request.param


@pytest.fixture
def run_python():
    """Runs code in a new interpreter with the package in `path`; environment variables by keyword."""

    def run(code, *, path=Path(convgru_fused.__file__).parent.parent, **environment):
        return subprocess.run(
            [sys.executable, "-c", code],
            cwd=path,
            env={**os.environ, "PYTHONPATH": str(path), **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.fixture
def run_in_two_processes(run_python, tmp_path):
    """Runs code in two processes of torchrun, with FOLDER the test's; returns what they print."""

    def run(code):
        program = tmp_path / "program.py"
        program.write_text(f"FOLDER = {str(tmp_path)!r}\n{code}")
        arguments = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(program)]
        start = f"import subprocess, sys; sys.exit(subprocess.call([sys.executable, *{arguments!r}]))"
        result = run_python(start, OMP_NUM_THREADS="1")
        assert result.returncode == 0, result.stderr
        return result.stdout

    return run
