"""Which backend runs: the one named in code, else in the environment, else the fastest that can."""

import pytest
import torch

import convgru_fused
from convgru_fused import ConvGRU, ConvGRUCell, backends, functional, use_backend
from convgru_fused.backends import BACKENDS, Problem, choose, selected

PROBLEM = Problem("cpu", torch.float32, "gru-rcn", forward_ad=False)


def test_the_fastest_that_can_is_chosen():
    assert choose(PROBLEM).name == "cpu"
    assert choose(Problem("cuda", torch.float32, "gru-rcn", forward_ad=False)).name == "eager"
    assert choose(Problem("cpu", torch.float32, "cudnn", forward_ad=True)).name == "eager"
    assert choose(Problem("cpu", torch.float8_e5m2, "gru-rcn", forward_ad=False)).name == "eager"


def test_use_backend_names_one_until_the_end_of_the_block():
    with use_backend("eager"):
        assert choose(PROBLEM).name == "eager"
        with use_backend("cpu"):
            assert choose(PROBLEM).name == "cpu"
        assert choose(PROBLEM).name == "eager"
    assert choose(PROBLEM).name == "cpu"
    with pytest.raises(KeyError), use_backend("eager"):
        raise KeyError
    assert choose(PROBLEM).name == "cpu"


def test_a_name_that_is_none():
    for name in ("fast", ["eager"], None):
        with pytest.raises(ValueError, match="name: expected one of 'cpu', "), use_backend(name):
            pass


def test_blocks_that_end_in_another_order():
    """As those of threads may: none leaves its backend behind."""
    first, second = use_backend("eager"), use_backend("cpu")
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert selected() == "cpu"
    second.__exit__(None, None, None)
    assert selected() is None


def spied(monkeypatch, calls):
    monkeypatch.setattr(functional, "_checked_cells", {})
    for name, backend in list(BACKENDS.items()):

        def conv_gru(*args, name=name, original=backend.conv_gru, save_gates):
            calls.append((name, save_gates))
            return original(*args, save_gates=save_gates)

        new = type(backend)(backend.name, backend.description, backend.missing, backend.refused, conv_gru)
        monkeypatch.setitem(BACKENDS, name, new)


def test_what_is_chosen_is_what_runs(monkeypatch):
    """The names are no mere labels: each backend's function is called, and no other."""
    called = []
    spied(monkeypatch, called)
    model, x = ConvGRU(3, 4), torch.zeros(2, 1, 3, 5, 5)
    for name in ("cpu", "eager"):
        with use_backend(name):
            model(x)
    model(x)
    assert [name for name, _ in called] == ["cpu", "eager", "cpu"]


def test_when_nothing_fits_every_backend_says_why(monkeypatch):
    for name, backend in list(BACKENDS.items()):
        refusing = type(backend)(
            name, "", lambda: "", lambda problem, name=name: [f"{name} is tired", "really"], backend.conv_gru
        )
        monkeypatch.setitem(BACKENDS, name, refusing)
    with pytest.raises(ValueError) as error:
        choose(PROBLEM)
    lines = str(error.value).splitlines()
    assert lines[0].startswith("no backend can run Problem(device_type='cpu', dtype=torch.float32")
    assert lines[1:] == [f"  {name}: {name} is tired; really" for name in ("cpu", "cuda", "eager", "triton")]


def test_table_of_backends(monkeypatch):
    table = backends()
    rows = [line.split()[:2] for line in str(table).splitlines()]
    assert rows == [["cpu", "yes"], ["cuda", "no"], ["eager", "yes"], ["triton", "no"]]
    assert [(row.name, "yes" if row.available else "no") for row in table] == [(a, b) for a, b in rows]
    assert table[3].reason == "triton needs a GPU"
    cpu = BACKENDS["cpu"]
    missing = type(cpu)("cpu", cpu.description, lambda: "not built", cpu.refused, cpu.conv_gru)
    monkeypatch.setitem(BACKENDS, "cpu", missing)
    assert str(backends()).splitlines()[0].split(maxsplit=2) == ["cpu", "no", "not built"]
    assert choose(PROBLEM).name == "eager"
    with (
        pytest.raises(ValueError, match="name: backend 'cpu' is not available: not built"),
        use_backend("cpu"),
    ):
        pass


CHOSEN = """
import torch
from convgru_fused.backends import Problem, choose
print(choose(Problem("cpu", torch.float32, "gru-rcn", False)).name)
"""


def test_environment_variable(run_python):
    assert run_python(CHOSEN, CONVGRU_FUSED_BACKEND="eager").stdout == "eager\n"


def test_environment_variable_yields_to_use_backend(run_python):
    code = CHOSEN.replace("print", "import convgru_fused\nwith convgru_fused.use_backend('cpu'): print")
    code += CHOSEN.splitlines()[-1]
    assert run_python(code, CONVGRU_FUSED_BACKEND="eager").stdout == "cpu\neager\n"


def test_environment_variable_that_names_no_backend(run_python):
    result = run_python("import convgru_fused", CONVGRU_FUSED_BACKEND="fastest")
    assert result.returncode == 1
    words = "CONVGRU_FUSED_BACKEND: expected one of 'cpu', 'cuda', 'eager', 'triton', got 'fastest'"
    assert result.stderr.splitlines()[-1] == f"ValueError: environment variable {words}"


def test_environment_variable_is_no_wish_but_a_command(run_python):
    """What it names has to run the problem, as with use_backend."""
    code = """
import torch, convgru_fused
convgru_fused.ConvGRU(3, 4, device="meta")(torch.zeros(2, 1, 3, 5, 5, device="meta"))
"""
    result = run_python(code, CONVGRU_FUSED_BACKEND="cpu")
    assert result.returncode == 1
    assert "backend 'cpu' cannot run" in result.stderr.splitlines()[-1]


def test_public_names():
    assert set(convgru_fused.__all__) >= {"ConvGRU", "ConvGRUCell", "backends", "functional", "use_backend"}
    assert all(hasattr(convgru_fused, name) for name in convgru_fused.__all__)


def test_what_is_chosen_is_what_runs_a_cell(monkeypatch):
    called = []
    spied(monkeypatch, called)
    cell, x = ConvGRUCell(3, 4), torch.zeros(1, 3, 5, 5)
    for name in ("cpu", "eager"):
        with use_backend(name):
            cell(x)
    cell(x)
    assert [name for name, _ in called] == ["cpu", "eager", "cpu"]


def test_gates_are_kept_only_for_a_backward_pass(monkeypatch):
    kept = []
    spied(monkeypatch, kept)
    model, x = ConvGRU(3, 4), torch.zeros(2, 1, 3, 5, 5)
    model(x)
    with torch.no_grad():
        model(x)
    model.recompute = True
    model(x)
    model.recompute = False
    model.requires_grad_(False)(x)
    assert kept == [("cpu", True), ("cpu", False), ("cpu", False), ("cpu", False)]


def test_what_cells_remember_is_bounded(monkeypatch):
    monkeypatch.setattr(functional, "_checked_cells", {})
    monkeypatch.setattr(functional, "_MOST_CHECKED_CELLS", 3)
    cell = ConvGRUCell(2, 3)
    for size in range(1, 9):
        cell(torch.zeros(1, 2, size, 3))
        assert len(functional._checked_cells) <= 3
