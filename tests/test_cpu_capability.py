"""The CPU kernels are compiled for several instruction sets; those below this machine's best, by name."""

import pytest

NAMES = ("generic", "avx2", "avx512", "avx512_bf16")  # each includes the ones before it

AGREES = """
import torch
from convgru_fused import _build_info
from convgru_fused.testing import assert_close_to_reference, assert_gradients_close
from convgru_fused.testing import reference, run, sample_inputs

torch.set_num_threads(1)
for sample in sample_inputs(lambda sample: not sample.reverse):
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        output, gradients = run("cpu", sample, dtype)
        expected_output, expected_gradients = reference(sample, dtype)
        assert_close_to_reference(output, expected_output)
        assert_gradients_close(gradients, expected_gradients)
print(_build_info.cpu_capability())
"""


@pytest.mark.parametrize("capability", NAMES[:-1])
def test_every_instruction_set_agrees_with_the_reference(run_python, capability):
    from convgru_fused import _build_info

    if capability not in _build_info.cpu_capabilities():
        pytest.skip(f"this machine has no {capability}")
    result = run_python(AGREES, CONVGRU_FUSED_CPU_CAPABILITY=capability)
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"{capability}\n"


def test_an_unknown_instruction_set_is_refused(run_python):
    code = """
import torch
from convgru_fused import ConvGRU
ConvGRU(3, 4)(torch.zeros(2, 1, 3, 5, 5))
"""
    result = run_python(code, CONVGRU_FUSED_CPU_CAPABILITY="mmx")
    assert result.returncode == 1
    last = result.stderr.splitlines()[-1]
    assert "CONVGRU_FUSED_CPU_CAPABILITY: expected generic, avx2, avx512 or avx512_bf16, got mmx" in last
