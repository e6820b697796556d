"""The algorithms of the CPU's convolutions: each one forced agrees with the reference; the plan tells which
runs."""

import pytest
import torch

from convgru_fused import _build_info
from convgru_fused.testing import (
    Sample,
    assert_close_to_reference,
    assert_gradients_close,
    reference,
    run,
    sample_inputs,
)

VARIABLE = "CONVGRU_FUSED_CPU_ALGORITHM"
ALGORITHMS = ("direct", "winograd2", "winograd4")

# Of those of the testing module the ones in which tiles, channels and time matter; and sizes of their own:
# more tiles than a block has, more channels than a block has, one and two pixels along an axis.
SAMPLES = [
    sample
    for sample in sample_inputs(lambda sample: not sample.reverse)
    if sample.name.startswith(
        ("plain", "kernel", "channels-of-16", "everything", "one-step-hx", "lengths-hx")
    )
] + [
    Sample(f"{name}-{variant}", T=3, N=2, hx=True, variant=variant, **sizes)
    for name, sizes in {
        "many-tiles": dict(C=5, K=7, H=35, W=66),
        "many-channels": dict(C=70, K=50, H=6, W=5),
        "row-of-pixels": dict(C=16, K=16, H=1, W=30),
        "two-rows": dict(C=3, K=33, H=2, W=9),
        "many-tiles-1x5": dict(C=4, K=20, H=30, W=37, kernel=(1, 5)),
    }.items()
    for variant in ("gru-rcn", "cudnn")
]

# Whole tiles and those of one, two or three outputs at the edges, and these alone.
SAMPLES += [
    Sample(f"edges-{H}x{W}", T=2, N=2, C=16, K=16, H=H, W=W, hx=True)
    for H, W in [(H, W) for H in range(4, 8) for W in range(8, 12)] + [(3, 2), (1, 3), (2, 1), (3, 9)]
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("sample", SAMPLES, ids=str)
def test_agrees_with_the_reference(sample, algorithm, dtype, monkeypatch):
    monkeypatch.setenv(VARIABLE, algorithm)
    for save_gates in (True, False):
        output, gradients = run("cpu", sample, dtype, save_gates=save_gates)
        expected_output, expected_gradients = reference(sample, dtype)
        assert_close_to_reference(output, expected_output)
        assert_gradients_close(gradients, expected_gradients)


def test_the_algorithms_differ(monkeypatch):
    """The test of the test above: the variable does choose."""
    sample = Sample("differ", T=2, N=1, C=16, K=16, H=16, W=16)
    outputs = []
    for algorithm in ALGORITHMS:
        monkeypatch.setenv(VARIABLE, algorithm)
        outputs.append(run("cpu", sample, torch.float32)[0])
    assert not torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[1], outputs[2])
    assert not torch.equal(outputs[0], outputs[2])


def test_an_unknown_algorithm_is_refused(monkeypatch):
    monkeypatch.setenv(VARIABLE, "fft")
    with pytest.raises(RuntimeError, match=f"{VARIABLE}: expected direct, winograd2 or winograd4, got fft"):
        run("cpu", Sample("refused", T=1, N=1, C=3, K=3, H=4, W=4), torch.float32)


def plan(**changes):
    shape = dict(
        T=10, N=1, C=64, K=64, H=56, W=56, kernel_h=3, kernel_w=3, cudnn=False, itemsize=4, fast=True
    )
    return _build_info.cpu_plan(**{**shape, "threads": 2, **changes})


def algorithms(**changes):
    return {row[2] for row in plan(**changes)}


def test_plan_by_precision_type_and_size():
    assert algorithms() == {"winograd4"}
    assert algorithms(fast=False) == {"winograd2"}
    assert algorithms(itemsize=8) == {"direct"}
    assert algorithms(itemsize=2, fast=False) == {"winograd4"}  # beside 16 bits no algorithm's error counts
    assert algorithms(H=1, W=1) == {"direct"}
    assert algorithms(kernel_h=1, kernel_w=5) == {"winograd4"}
    assert algorithms(kernel_h=1, kernel_w=5, fast=False) == {"direct"}
    assert algorithms(kernel_h=5, kernel_w=5) == {"direct"}


def test_plan_of_a_sequence():
    rows = {name: (times, inputs, outputs) for name, times, _, inputs, outputs, *_ in plan()}
    assert rows == {
        "W_rz*x and U_rz*h": (10, 128, 128),  # a step at a time
        "W_n*x and U_n*(r.h)": (10, 128, 64),
        "gradient of r.h": (10, 64, 64),
        "gradient of h": (10, 128, 64),
        "gradient of x": (10, 192, 64),
        "gradients of W and U": (10, 192, 192),
    }
    small = {name: times for name, times, *_ in plan(H=8, W=8)}
    assert small["W*x"] == 1 and small["U_rz*h"] == 10  # the input convolution of all steps at once
    names = [row[0] for row in plan(cudnn=True, C=0)]
    assert names == ["U*h", "gradient of h", "gradient of U"]


def test_plan_uses_all_threads():
    for threads in (1, 2, 4):
        for _, _, _, _, _, tiles, together, parts in plan(threads=threads):
            assert parts >= threads and together <= tiles
