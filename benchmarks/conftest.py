"""Options of the pytest-benchmark entry: what to time."""

from __future__ import annotations

import pytest

from convgru_fused.bench.contenders import PEERS
from convgru_fused.bench.workloads import MODES, WORKLOADS

_DEFAULTS = {"rows": "tiny,matting_coarse", "contenders": "fused,eager,tuned", "variant": "gru-rcn"}
_KNOWN = {"rows": tuple(WORKLOADS), "contenders": ("fused", *PEERS)}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("convgru_fused")
    group.addoption("--rows", default=_DEFAULTS["rows"], help='workloads, comma-separated, or "all"')
    group.addoption("--contenders", default=_DEFAULTS["contenders"], help='comma-separated, or "all"')
    group.addoption("--variant", default=_DEFAULTS["variant"], choices=("gru-rcn", "cudnn"))


@pytest.fixture(scope="module")
def variant(pytestconfig: pytest.Config) -> str:
    return pytestconfig.getoption("variant", _DEFAULTS["variant"])


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "row" in metafunc.fixturenames:
        metafunc.parametrize("row", _chosen(metafunc.config, "rows"), scope="module")
        metafunc.parametrize("mode", MODES)
        metafunc.parametrize("contender", _chosen(metafunc.config, "contenders"))


def _chosen(config: pytest.Config, option: str) -> tuple[str, ...]:
    # The options are not declared when pytest is started from elsewhere and finds this folder on its way.
    text = config.getoption(option, _DEFAULTS[option])
    names = _KNOWN[option] if text == "all" else tuple(text.split(","))
    for name in names:
        if name not in _KNOWN[option]:
            raise pytest.UsageError(f"--{option}: expected some of {', '.join(_KNOWN[option])}, got {name!r}")
    return names
