"""The same call gives the same bits: whatever was called before, beside it, or with how many threads.

Bitwise, for the native backend. The eager one inherits what PyTorch's convolutions promise, and is tested for
repetition only.
"""

import os
import threading
from contextlib import contextmanager

import pytest
import torch

from convgru_fused import ConvGRU, precision, use_backend
from convgru_fused.eager import VARIANTS
from convgru_fused.testing import TOLERANCES, assert_close_to_reference, measure

each_variant = pytest.mark.parametrize("variant", VARIANTS)
each_dtype = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str
)

# (C, K, kernel): large enough to be split over threads; multiples of 16 are computed by other kernels.
SHAPES = {"odd": (17, 19, 3), "sixteens": (32, 48, 3), "1x5": (16, 32, (1, 5)), "1x1": (16, 32, 1)}
each_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


@pytest.fixture(autouse=True)
def _native():
    with use_backend("cpu"):
        yield


@contextmanager
def threads(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def make(shape, variant="gru-rcn", dtype=torch.float32, T=4, N=3, H=22, W=27):
    C, K, kernel = shape
    model = ConvGRU(C, K, kernel, bidirectional=True, variant=variant, dtype=dtype)
    return model, torch.randn(T, N, C, H, W).to(dtype)


def step(model, x, *args):
    """Output, h_n and all gradients of one call."""
    x = x.detach().requires_grad_()
    output, h_n = model(x, *args)
    leaves = [x, *model.parameters()]
    gradients = torch.autograd.grad((output * output.detach().cos()).sum() + h_n.sum(), leaves)
    return [output.detach(), h_n.detach(), *gradients]


def names(model):
    return ["output", "h_n", "grad x", *(f"grad {name}" for name, _ in model.named_parameters())]


def assert_bitwise(model, actual, expected):
    different = [n for n, a, e in zip(names(model), actual, expected, strict=True) if not torch.equal(a, e)]
    assert not different


@each_variant
@each_dtype
@each_shape
def test_repetition_is_bitwise(shape, dtype, variant):
    model, x = make(shape, variant, dtype, T=3, N=2, H=13, W=17)
    expected = step(model, x)
    for _ in range(2):
        assert_bitwise(model, step(model, x), expected)


@each_variant
def test_repetition_of_eager_is_bitwise(variant):
    model, x = make(SHAPES["odd"], variant)
    with use_backend("eager"):
        assert_bitwise(model, step(model, x), step(model, x))


@each_variant
@each_dtype
@each_shape
def test_two_threads_give_what_one_gives(shape, dtype, variant):
    model, x = make(shape, variant, dtype)
    expected = step(model, x)
    for count in (2, 3, 9):  # more threads than slices of a weight gradient as well
        with threads(count):
            assert_bitwise(model, step(model, x), expected)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "sizes",
    [
        dict(shape=(16, 64, 3), N=2, H=26, W=27),  # step by step
        dict(shape=(16, 64, 3), N=2, H=14, W=13),  # W*x of several steps ahead
        dict(shape=(24, 40, 3), N=3, H=21, W=32),
        dict(shape=(24, 40, (5, 1)), N=3, H=21, W=32),
    ],
    ids=str,
)
@each_variant
def test_inference_gives_what_training_gives(variant, sizes, dtype, channels_last):
    """Without gates to keep, the buffers between the convolutions are others; with any number of threads."""
    model, x = make(variant=variant, dtype=dtype, **sizes)
    if channels_last:
        x = x.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, x.shape[:2])
    hx = torch.randn(2, x.size(1), model.hidden_size, *x.shape[3:]).to(dtype)
    lengths = torch.tensor([4, 2, 3][: x.size(1)])
    maps = torch.randn(*x.shape[:2], 6 * model.hidden_size, *x.shape[3:]).to(dtype)
    arguments = [(x,), (x, hx), (x, hx, lengths, maps), (x, hx, None, maps[..., :1, :1])]
    expected = [[result.detach() for result in model(*some)] for some in arguments]
    for count in (1, 2, 3, 9):
        with threads(count), torch.inference_mode():
            for some, (output, h_n) in zip(arguments, expected, strict=True):
                actual = model(*some)
                assert torch.equal(actual[0], output)
                assert torch.equal(actual[1], h_n)


@each_variant
@each_shape
def test_a_sample_alone_gives_what_it_gives_in_a_batch(shape, variant):
    """Not bitwise: the algorithm of a convolution is chosen by the size of the batch."""
    model, x = make(shape, variant)
    output, h_n = model(x)
    for n in range(x.size(1)):
        alone_output, alone_h_n = model(x[:, n : n + 1])
        assert_close_to_reference(alone_output, output[:, n : n + 1])
        assert_close_to_reference(alone_h_n, h_n[:, n : n + 1])


@each_shape
def test_companions_in_the_batch_do_not_matter(shape):
    """Bitwise, for the same size of batch: whatever the others are, NaN included."""
    model, x = make(shape)
    expected, _ = model(x)
    for value in (0.0, 1e3, float("nan")):
        changed = x.clone()
        changed[:, 1:] = value
        assert torch.equal(model(changed)[0][:, 0], expected[:, 0])


@each_shape
def test_steps_past_the_length_do_not_matter(shape):
    model, x = make(shape)
    lengths = torch.tensor([4, 2, 0])
    expected = step(model, x, None, lengths)
    changed = x.clone()
    changed[2:, 1] = float("nan")
    changed[:, 2] = float("inf")
    actual = step(model, changed, None, lengths)
    assert torch.equal(actual[0], expected[0])
    assert torch.equal(actual[1], expected[1])


@each_variant
@each_shape
def test_earlier_calls_do_not_matter(shape, variant):
    """Other sizes, dtypes and weights in between leave nothing behind."""
    model, x = make(shape, variant)
    expected = step(model, x)
    for sizes in (dict(T=2, H=9, W=8), dict(N=1, dtype=torch.float64), dict(T=7, dtype=torch.bfloat16, H=5)):
        step(*make(shape, variant, **sizes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    assert not torch.equal(model(x)[0], expected[0])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.div_(2)  # exact
    assert_bitwise(model, step(model, x), expected)


def test_weights_that_change_in_place_are_seen():
    """Transformed weights are kept between calls, but not beyond a change of the weights."""
    model, x = make(SHAPES["sixteens"])
    model(x)
    for scale in (0.5, -1.0, 3.0):
        with torch.no_grad():
            model.weight_hh_l0.mul_(scale)
            model.weight_ih_l0_reverse[5, 3, 1, 1] += 1  # a single element
        actual = step(model, x)
        with precision("strict"):
            expected = step(model, x)
        for name, a, e in zip(names(model), actual, expected, strict=True):
            errors = measure(a, e)
            assert errors.relative_l2 <= 2 * TOLERANCES[torch.float32, "gradients"].relative_l2, name


@each_shape
def test_python_threads_at_once_give_the_same(shape):
    """The operator holds no state that two calls could disturb."""
    model, x = make(shape)
    inputs = [x, x.flip(0), 2 * x, -x]
    expected = [step(model, x) for x in inputs]
    results = [None] * len(inputs)
    barrier = threading.Barrier(len(inputs))

    def work(i):
        torch.set_num_threads(1)
        barrier.wait()
        results[i] = [step(model, inputs[i]) for _ in range(3)]

    workers = [threading.Thread(target=work, args=(i,)) for i in range(len(inputs))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for repeated, single in zip(results, expected, strict=True):
        for result in repeated:
            assert_bitwise(model, result, single)


ASYNCHRONOUS = """
import random, threading, time, torch
from convgru_fused import ConvGRUCell, use_backend
torch.set_num_threads(1)
torch.manual_seed(0)
random.seed(0)
K = 256
cell, x, h = ConvGRUCell(K, K), torch.randn(1, K, 6, 6), torch.randn(1, K, 6, 6)
old = [p.detach().clone() for p in cell.parameters()]
new = [0.02 * torch.randn_like(p) for p in old]

@torch.no_grad()
def write(weights):
    for p, w in zip(cell.parameters(), weights):
        p.copy_(w)

@torch.no_grad()
def call():
    return cell(x, h)

write(new)
with use_backend("eager"):
    expected = call()
write(old)
call()
start = time.perf_counter()
write(new)
call()
seconds = time.perf_counter() - start
for _ in range(30):
    write(old)
    call()
    write([1.01 * w for w in old])
    writer = threading.Thread(target=lambda: (time.sleep(random.random() * seconds), write(new)))
    writer.start()
    call()
    writer.join()
    assert (call() - expected).abs().max() < 1e-3
"""


def test_weights_that_another_thread_writes_during_a_call_are_seen_after_it(run_python):
    result = run_python(ASYNCHRONOUS)
    assert result.returncode == 0, result.stderr


FORKING = """
import os, signal, threading, torch
from convgru_fused import ConvGRU
torch.set_num_threads(1)
model, other, done = ConvGRU(8, 16), ConvGRU(64, 64), False

@torch.no_grad()
def work():
    while not done:
        other(torch.ones(1, 1, 64, 4, 4))

thread = threading.Thread(target=work)
thread.start()
try:
    for _ in range(40):
        child = os.fork()
        if child == 0:
            signal.alarm(10)  # ends it if it waits
            with torch.no_grad():
                model(torch.ones(1, 1, 8, 4, 4))
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
finally:
    done = True
    thread.join()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes cannot be forked")
def test_a_process_forked_while_another_thread_computes(run_python):
    """As workers of a DataLoader are beside a thread that infers: what that holds is free in the child."""
    result = run_python(FORKING)
    assert result.returncode == 0, result.stderr
