"""The memory of large results on the CPU, which goes from one result to the next: whoever holds a result
keeps it, and whoever lets go of it, on whatever thread and however late, does no harm."""

import pickle
import resource
import subprocess
import sys
import threading

import pytest
import torch

from convgru_fused import ConvGRUCell, use_backend

K, H, W = 16, 72, 70  # a state of 315 KiB: more than the 256 KiB from which on memory is kept


@pytest.fixture
def cell():
    with torch.no_grad(), use_backend("cpu"):
        yield ConvGRUCell(K, K)


def images(seed):
    return torch.randn(1, K, H, W, generator=torch.Generator().manual_seed(seed))


def test_no_page_faults_once_there_is_memory(cell):
    """For results that live for a while, as those of a sequence do: PyTorch's allocation has a thousand."""
    x = images(0)

    def faults():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        held = [cell(x) for _ in range(16)]
        assert len({h.data_ptr() for h in held}) == 16
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    faults()
    assert min(faults() for _ in range(5)) < 16


def test_a_result_that_is_held_stays(cell):
    inputs = [images(seed) for seed in range(8)]
    held = [cell(x) for x in inputs]
    copies = [h.clone() for h in held]
    del held[::2], copies[::2]
    for _ in range(4):
        again = [cell(x) for x in inputs]
    assert len({h.data_ptr() for h in held + again}) == len(held) + len(again)
    for h, copy in zip(held, copies, strict=True):
        assert torch.equal(h, copy)
    for h, expected in zip(again[1::2], copies, strict=True):
        assert torch.equal(h, expected)


def test_a_view_keeps_the_memory(cell):
    x = images(0)
    view = cell(x)[0, 3:5]
    expected = view.clone()
    for seed in range(4):
        cell(images(seed + 1))
    assert torch.equal(view, expected)


def test_threads_give_back_what_others_took(cell):
    x = images(0)
    expected = cell(x)
    results, wrong = [], []

    def work():
        for _ in range(50):
            h = cell(x)
            if not torch.equal(h, expected):
                wrong.append(h)
            results.append(h)
            if len(results) > 8:
                results.pop(0)  # perhaps another thread's

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and all(torch.equal(h, expected) for h in results)


def test_results_are_tensors_like_others(cell):
    h = cell(images(0))
    assert h.untyped_storage().nbytes() == h.numel() * h.element_size()
    assert torch.equal(pickle.loads(pickle.dumps(h)), h)
    copy = h.clone()
    h.share_memory_()
    assert h.is_shared() and torch.equal(h, copy)
    h.mul_(2)
    assert torch.equal(h, 2 * copy)


def test_a_result_may_outlive_the_interpreter():
    code = (
        "import sys, torch, convgru_fused\n"
        f"cell = convgru_fused.ConvGRUCell({K}, {K})\n"
        f"sys.kept = cell(torch.zeros(1, {K}, {H}, {W}))\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
