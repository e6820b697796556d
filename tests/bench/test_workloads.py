from __future__ import annotations

import pytest
import torch

from convgru_fused.bench.workloads import LENGTHS, LENGTHS_WORKLOAD, QUICK, WORKLOADS, Workload, select

# Millions of multiply-adds a frame, of the input's and of the recurrent convolutions.
FRAME_MMAC = {
    "gru_rcn_pool2": (693.6, 346.8),
    "gru_rcn_pool3": (693.6, 346.8),
    "gru_rcn_pool4": (693.6, 346.8),
    "gru_rcn_pool5": (173.4, 86.7),
    "gru_rcn_fc7": (6.3, 0.8),
}
WEIGHTS = {
    "gru_rcn_pool2": 331_776,
    "gru_rcn_pool3": 1_327_104,
    "gru_rcn_pool4": 5_308_416,
    "gru_rcn_pool5": 5_308_416,
    "gru_rcn_fc7": 7_077_888,
}
# Whole runs, in GFLOP, at a GPU's batch.
RUN_GFLOP = {
    "gru_rcn_pool2": 1332,
    "gru_rcn_pool3": 1332,
    "gru_rcn_pool4": 1332,
    "gru_rcn_stream": 21,
    "raft_sep": 249,
}


@pytest.mark.parametrize("name", FRAME_MMAC)
def test_flops_of_a_frame(name: str) -> None:
    workload = WORKLOADS[name]
    mmac = workload.flops("forward", 1) / workload.steps / 2e6
    assert mmac == pytest.approx(sum(FRAME_MMAC[name]), abs=0.15)


def test_flops_of_a_clip() -> None:
    assert sum(WORKLOADS[name].flops("forward", 1) for name in FRAME_MMAC) / 1e9 == pytest.approx(
        67.8, abs=0.1
    )


@pytest.mark.parametrize("name", RUN_GFLOP)
def test_flops_of_a_run(name: str) -> None:
    workload = WORKLOADS[name]
    assert workload.flops("forward", workload.batch("cuda")) / 1e9 == pytest.approx(RUN_GFLOP[name], abs=0.5)


@pytest.mark.parametrize("workload", WORKLOADS.values(), ids=WORKLOADS)
def test_training_is_three_times_the_work(workload: Workload) -> None:
    assert workload.flops("train", 2) == 3 * workload.flops("forward", 2)


@pytest.mark.parametrize("name", WEIGHTS)
def test_parameter_shapes(name: str) -> None:
    (shapes,) = WORKLOADS[name].parameter_shapes()
    count = sum(torch.Size(shapes[weight]).numel() for weight in ("weight_ih", "weight_hh"))
    assert count == WEIGHTS[name]


def test_bytes_floor_by_hand() -> None:
    workload = Workload("w", "", "seq", 2, 3, 3, 5, 4, 6, 7)
    x, states, hx = 2 * 3 * 5 * 42, 2 * 3 * 4 * 42, 3 * 4 * 42
    parameters = 12 * 5 * 9 + 12 * 4 * 9 + 12 + 12
    forward = x + hx + parameters + states
    assert workload.bytes_floor("forward", 3, 4) == 4 * forward
    backward = x + hx + 2 * states + parameters + x + hx + parameters
    assert workload.bytes_floor("train", 3, 2) == 2 * (forward + backward)


def test_unknown_mode() -> None:
    with pytest.raises(ValueError, match="expected one of forward, train, got 'backward'"):
        WORKLOADS["tiny"].flops("backward", 1)


def test_inputs_have_the_shapes_and_are_not_flat() -> None:
    workload = WORKLOADS["tiny"]
    inputs = workload.make_inputs()
    assert inputs.x.shape == inputs.grad_output.shape == (16, 1, 16, 16, 16)
    assert inputs.hx.shape == (1, 16, 16, 16)
    assert [t.shape for t in inputs.weights[0]] == [*workload.parameter_shapes()[0].values()]
    for tensor in (inputs.x, inputs.hx, inputs.grad_output, *inputs.weights[0]):
        assert tensor.std() > 0.05


def test_inputs_depend_on_the_seed_alone() -> None:
    workload = WORKLOADS["tiny"]
    first, again, other = (workload.make_inputs(seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.x, again.x) and not torch.equal(first.x, other.x)
    coarse = workload.make_inputs(dtype=torch.bfloat16, seed=1)
    assert torch.equal(first.x.to(torch.bfloat16), coarse.x)


def test_separable_workload_has_weights_for_both_cells() -> None:
    workload = WORKLOADS["raft_sep"]
    assert [shapes["weight_hh"][2:] for shapes in workload.parameter_shapes()] == [(1, 5), (5, 1)]


def test_selection() -> None:
    assert [w.name for w in select(["tiny", "raft_sep"])] == ["tiny", "raft_sep"]
    with pytest.raises(ValueError, match="unknown workload 'tin': expected one of gru_rcn_pool2, "):
        select(["tiny", "tin"])


def test_the_suites_are_of_known_workloads() -> None:
    assert set(QUICK) < set(WORKLOADS) and len(WORKLOADS) == 14
    assert LENGTHS_WORKLOAD in WORKLOADS and LENGTHS["full"][0] == 16 and LENGTHS["full"][-1] == 512
