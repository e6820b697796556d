"""The kernels: "same" convolutions whose sums become gates, states and their gradients before they leave the
registers.

Images are channels last, (N,H,W,channels) for each time step; a row is a pixel, number (n*H + y)*W + x. A
program computes the sums of a tile of rows by a block of output channels: for every tap and block of input
channels a product of shifted pixels (outside the image: zero) and packed weights (taps,in,out). With
descriptors a tile is a box of images by rows by columns, which the hardware loads and fills with zeros; else
it is as many consecutive rows, loaded through pointers and masks.

Arguments that all kernels but `transpose_kernel` share:
    t, t_h, t_next, t_gates   which of the time steps in a buffer: of this step; of the state before it; of
                              the step that the recurrence took after it; of the gates
    sums                      (N*H*W,out) of a convolution by somebody else, instead of TAPS and weights; or
                              None
    lengths                   (N,): rows of samples with lengths <= t stand still; or None
    TAPS, KW                  of the kernel kh x kw: kh*kw, or 0 where there is nothing to convolve; kw
    TILE                      of a `tiles.Tile`
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

STEPS = ("N", "H", "W", "t", "t_h", "t_next", "t_gates")  # there is no kernel for each value of these


class Rows(NamedTuple):
    """A tile's rows and block of channels."""

    n0: Any  # of a box: first image, row and column of pixels
    y0: Any
    x0: Any
    n: Any  # (BLOCK_M,) image, row and column of pixels of each
    y: Any
    x: Any
    there: Any  # (BLOCK_M,) whether there is such a pixel
    row: Any  # (BLOCK_M,) 64 bits
    column: Any  # (BLOCK_N,) output channels
    o: Any  # the first of them


@triton.jit
def _sigmoid(x):
    return 1 / (1 + tl.exp(-x))


@triton.jit
def _tanh(x):
    return 1 - 2 / (1 + tl.exp(2 * x))


@triton.jit
def _rows(N, H, W, OUT: tl.constexpr, TILE: tl.constexpr):
    """The tile of this program."""
    BLOCK_N: tl.constexpr = TILE[3]
    BLOCK_M: tl.constexpr = TILE[0] * TILE[1] * TILE[2]
    blocks: tl.constexpr = (OUT + BLOCK_N - 1) // BLOCK_N
    pid = tl.program_id(0)
    o = pid % blocks * BLOCK_N
    tile = pid // blocks
    r = tl.arange(0, BLOCK_M)
    if TILE[5]:
        across = tl.cdiv(W, TILE[2])
        down = tl.cdiv(H, TILE[1])
        n0 = tile // (down * across) * TILE[0]
        y0 = tile // across % down * TILE[1]
        x0 = tile % across * TILE[2]
        n = n0 + r // (TILE[1] * TILE[2])
        y = y0 + r // TILE[2] % TILE[1]
        x = x0 + r % TILE[2]
        row = (n.to(tl.int64) * H + y) * W + x
        there = (n < N) & (y < H) & (x < W)
    else:
        n0, y0, x0 = 0, 0, 0
        row = tile.to(tl.int64) * BLOCK_M + r
        n = (row // (H * W)).to(tl.int32)
        y = (row // W % H).to(tl.int32)
        x = (row % W).to(tl.int32)
        there = n < N
    return Rows(n0, y0, x0, n, y, x, there, row, o + tl.arange(0, BLOCK_N), o)


@triton.jit
def _boxes(images, N, H, W, C: tl.constexpr, STRIDE: tl.constexpr, TILE: tl.constexpr):
    """images (N,H,W,C), whose pixels are STRIDE elements apart, as `_pixels` wants them."""
    if TILE[5]:
        return tl.make_tensor_descriptor(
            images,
            shape=[N, H, W, C],
            strides=[H.to(tl.int64) * W * STRIDE, W.to(tl.int64) * STRIDE, STRIDE, 1],
            block_shape=[TILE[0], TILE[1], TILE[2], TILE[4]],
        )
    else:
        return images


@triton.jit
def _pixels(boxes, H, W, rows, dy, dx, c, C: tl.constexpr, STRIDE: tl.constexpr, TILE: tl.constexpr):
    """(BLOCK_M,BLOCK_K): channels from c on of the tile's pixels moved by (dy,dx), zero outside the image."""
    BLOCK_M: tl.constexpr = TILE[0] * TILE[1] * TILE[2]
    BLOCK_K: tl.constexpr = TILE[4]
    if TILE[5]:
        return boxes.load([rows.n0, rows.y0 + dy, rows.x0 + dx, c]).reshape(BLOCK_M, BLOCK_K)
    else:
        k = c + tl.arange(0, BLOCK_K)
        y, x = rows.y + dy, rows.x + dx
        inside = rows.there & (y >= 0) & (y < H) & (x >= 0) & (x < W)
        mask = inside[:, None] & (k < C)[None, :]
        place = (rows.row + dy * W + dx) * STRIDE
        return tl.load(boxes + place[:, None] + k[None, :], mask=mask, other=0.0)


@triton.jit
def _factors(weight, C: tl.constexpr, WIDTH: tl.constexpr, TAPS: tl.constexpr, TILE: tl.constexpr):
    """A packed weight (TAPS,C,WIDTH) as `_block` wants it."""
    if TILE[5]:
        return tl.make_tensor_descriptor(
            weight, shape=[TAPS, C, WIDTH], strides=[C * WIDTH, WIDTH, 1], block_shape=[1, TILE[4], TILE[3]]
        )
    else:
        return weight


@triton.jit
def _block(factors, tap, c, o, C: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr):
    """(BLOCK_K,BLOCK_N) of a packed weight, from input channel c and output channel o on."""
    BLOCK_N: tl.constexpr = TILE[3]
    BLOCK_K: tl.constexpr = TILE[4]
    if TILE[5]:
        return factors.load([tap, c, o]).reshape(BLOCK_K, BLOCK_N)
    else:
        k = c + tl.arange(0, BLOCK_K)
        column = o + tl.arange(0, BLOCK_N)
        place = (tap * C + k).to(tl.int64)[:, None] * WIDTH + column[None, :]
        return tl.load(factors + place, mask=(k < C)[:, None] & (column < WIDTH)[None, :], other=0.0)


@triton.jit
def _convolve(
    acc, images, weight, N, H, W, rows, C: tl.constexpr, STRIDE: tl.constexpr, OUT: tl.constexpr,
    TAPS: tl.constexpr, KW: tl.constexpr, TILE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """acc (BLOCK_M,BLOCK_N) + the "same" convolution of images (N,H,W,C), whose pixels are STRIDE elements
    apart, by a packed weight (TAPS,C,WIDTH); WIDTH: OUT rounded up to a multiple of 8."""
    WIDTH: tl.constexpr = (OUT + 7) // 8 * 8
    blocks: tl.constexpr = (C + TILE[4] - 1) // TILE[4]
    boxes = _boxes(images, N, H, W, C, STRIDE, TILE)
    factors = _factors(weight, C, WIDTH, TAPS, TILE)
    for i in tl.range(0, TAPS * blocks):
        tap, c = i // blocks, i % blocks * TILE[4]
        dy, dx = tap // KW - TAPS // KW // 2, tap % KW - KW // 2
        a = _pixels(boxes, H, W, rows, dy, dx, c, C, STRIDE, TILE)
        acc = tl.dot(a, _block(factors, tap, c, rows.o, C, WIDTH, TILE), acc, input_precision=PRECISION)
    return acc


@triton.jit
def _convolve_three(
    images, weight, N, H, W, rows, K: tl.constexpr, GATE: tl.constexpr, TAPS: tl.constexpr, KW: tl.constexpr,
    TILE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The sums of r, z and n of the same hidden channels. images (N,H,W,K); weight (TAPS,K,3 GATE), of each
    gate its K channels first."""
    BLOCK_M: tl.constexpr = TILE[0] * TILE[1] * TILE[2]
    BLOCK_N: tl.constexpr = TILE[3]
    r = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
    z, n = r, r
    blocks: tl.constexpr = (K + TILE[4] - 1) // TILE[4]
    boxes = _boxes(images, N, H, W, K, K, TILE)
    factors = _factors(weight, K, 3 * GATE, TAPS, TILE)
    for i in tl.range(0, TAPS * blocks):
        tap, c = i // blocks, i % blocks * TILE[4]
        dy, dx = tap // KW - TAPS // KW // 2, tap % KW - KW // 2
        a = _pixels(boxes, H, W, rows, dy, dx, c, K, K, TILE)
        b_r = _block(factors, tap, c, rows.o, K, 3 * GATE, TILE)
        b_z = _block(factors, tap, c, GATE + rows.o, K, 3 * GATE, TILE)
        b_n = _block(factors, tap, c, 2 * GATE + rows.o, K, 3 * GATE, TILE)
        r = tl.dot(a, b_r, r, input_precision=PRECISION)
        z = tl.dot(a, b_z, z, input_precision=PRECISION)
        n = tl.dot(a, b_n, n, input_precision=PRECISION)
    return r, z, n


@triton.jit
def _sums(
    images, weight, sums, N, H, W, rows, C: tl.constexpr, STRIDE: tl.constexpr, OUT: tl.constexpr,
    TAPS: tl.constexpr, KW: tl.constexpr, TILE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """(BLOCK_M,BLOCK_N) of a convolution, computed or loaded."""
    BLOCK_M: tl.constexpr = TILE[0] * TILE[1] * TILE[2]
    BLOCK_N: tl.constexpr = TILE[3]
    acc = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
    if sums is not None:
        place = rows.row[:, None] * OUT + rows.column[None, :]
        mask = rows.there[:, None] & (rows.column < OUT)[None, :]
        acc += tl.load(sums + place, mask=mask, other=0.0)
    elif TAPS > 0:
        acc = _convolve(acc, images, weight, N, H, W, rows, C, STRIDE, OUT, TAPS, KW, TILE, PRECISION)
    return acc


@triton.jit
def _with_outside(
    acc, a, bias, N, H, W, t, rows, column, mask, K: tl.constexpr, A_IMAGE: tl.constexpr,
    A_PIXEL: tl.constexpr,
):  # fmt: skip
    """acc + what the gates receive from outside the recurrence, for some channels r|z|n. Of `a`, pixels are
    A_PIXEL elements apart and images A_IMAGE or, where A_IMAGE is -1, H*W pixels; bias (3K,). Both may be
    None."""
    if bias is not None:
        acc += tl.load(bias + column, mask=column < 3 * K, other=0.0).to(tl.float32)[None, :]
    if a is not None:
        image = t.to(tl.int64) * N + rows.n
        place = image * A_IMAGE
        if A_IMAGE < 0:
            place = (image * (H * W) + rows.y * W + rows.x) * A_PIXEL
        acc += tl.load(a + place[:, None] + column[None, :], mask=mask, other=0.0).to(tl.float32)
    return acc


@triton.jit
def _advance(state, output, i, mask, lengths, t, rows, before, next):
    """Writes the next state, or what it is past a sample's length: the one before; and the output, or zero
    there. output None: it is the state."""
    if lengths is not None:
        valid = (t < tl.load(lengths + rows.n, mask=rows.there, other=0))[:, None]
        tl.store(output + i, tl.where(valid, next, 0.0).to(output.dtype.element_ty), mask=mask)
        next = tl.where(valid, next, before)
    tl.store(state + i, next.to(state.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=STEPS)
def reset_update_kernel(
    x,  # (N,H,W,C) convolved too, or None
    weight_x,  # (TAPS,C,2K)
    h,  # (.,N,H,W,K) states
    weight,  # (TAPS,K,2K)
    sums,
    a,  # what r and z receive from outside; see _with_outside
    bias,  # (3K,) besides, or None
    gates,  # (.,N,H,W,3K) out: r if KEEP, z
    rh,  # (N,H,W,K) out
    N, H, W, t, t_h, t_gates,
    C: tl.constexpr, K: tl.constexpr, A_IMAGE: tl.constexpr, A_PIXEL: tl.constexpr, KEEP: tl.constexpr,
    TAPS: tl.constexpr, KW: tl.constexpr, TILE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """r, z = sigmoid(W_rz*x + U_rz*h + a_rz); rh = r.h."""
    rows = _rows(N, H, W, 2 * K, TILE)
    step = N.to(tl.int64) * H * W
    h += t_h * step * K
    acc = _sums(h, weight, sums, N, H, W, rows, K, K, 2 * K, TAPS, KW, TILE, PRECISION)
    if x is not None:
        acc = _convolve(acc, x, weight_x, N, H, W, rows, C, C, 2 * K, TAPS, KW, TILE, PRECISION)
    column = rows.column
    mask = rows.there[:, None] & (column < 2 * K)[None, :]
    s = _sigmoid(_with_outside(acc, a, bias, N, H, W, t, rows, column, mask, K, A_IMAGE, A_PIXEL))
    gate = s.to(gates.dtype.element_ty)
    kept = mask if KEEP else mask & (column >= K)[None, :]
    tl.store(gates + ((t_gates * step + rows.row) * (3 * K))[:, None] + column[None, :], gate, mask=kept)
    i = (rows.row * K)[:, None] + column[None, :]
    mask = rows.there[:, None] & (column < K)[None, :]
    product = s * tl.load(h + i, mask=mask, other=0.0).to(tl.float32)
    tl.store(rh + i, product.to(rh.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=STEPS)
def candidate_kernel(
    x,  # (N,H,W,C) convolved too, or None
    weight_x,  # (TAPS,C,K)
    rh,  # (N,H,W,K)
    weight,  # (TAPS,K,K)
    sums,
    a,  # what n receives from outside; see _with_outside
    bias,  # (3K,) besides, or None
    gates,  # (.,N,H,W,3K) in: z; out: n if KEEP
    h,  # (.,N,H,W,K) states
    state,  # (.,N,H,W,K) out; None: only n is wanted
    output,  # (.,N,H,W,K) out, with lengths; else None
    lengths,
    N, H, W, t, t_h, t_gates, t_next,
    C: tl.constexpr, K: tl.constexpr, A_IMAGE: tl.constexpr, A_PIXEL: tl.constexpr, KEEP: tl.constexpr,
    RELU: tl.constexpr, TAPS: tl.constexpr, KW: tl.constexpr, TILE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """n = tanh(W_n*x + U_n*rh + a_n), or relu; h' = (1-z).h + z.n, which is state t_next."""
    rows = _rows(N, H, W, K, TILE)
    step = N.to(tl.int64) * H * W
    acc = _sums(rh, weight, sums, N, H, W, rows, K, K, K, TAPS, KW, TILE, PRECISION)
    if x is not None:
        acc = _convolve(acc, x, weight_x, N, H, W, rows, C, C, K, TAPS, KW, TILE, PRECISION)
    column = rows.column
    mask = rows.there[:, None] & (column < K)[None, :]
    acc = _with_outside(acc, a, bias, N, H, W, t, rows, 2 * K + column, mask, K, A_IMAGE, A_PIXEL)
    n = tl.maximum(acc, 0.0, tl.PropagateNan.ALL) if RELU else _tanh(acc)
    p_gates = gates + ((t_gates * step + rows.row) * (3 * K))[:, None] + column[None, :]
    if KEEP:
        tl.store(p_gates + 2 * K, n.to(gates.dtype.element_ty), mask=mask)
    if state is not None:
        z = tl.load(p_gates + K, mask=mask, other=0.0).to(tl.float32)
        i = (rows.row * K)[:, None] + column[None, :]
        before = tl.load(h + t_h * step * K + i, mask=mask, other=0.0).to(tl.float32)
        output = output if output is None else output + t * step * K
        state += t_next * step * K
        _advance(state, output, i, mask, lengths, t, rows, before, (1 - z) * before + z * n)


@triton.jit(do_not_specialize=STEPS)
def cudnn_step_kernel(
    h,  # (.,N,H,W,K) states
    weight,  # (TAPS,K,3 GATE), GATE: K rounded up to a multiple of 8
    sums,  # (N*H*W,3K) or None
    a,  # what the gates receive from outside; see _with_outside
    bias,  # (3K,) besides, or None
    bias_hn,  # (K,) or None
    gates,  # (T,N,H,W,4K) out: r|z|n|q, or None
    state,  # (.,N,H,W,K) out, not h; None: only the gates are wanted
    output,  # (.,N,H,W,K) out, with lengths; else None
    lengths,
    N, H, W, t, t_h, t_next,
    K: tl.constexpr, A_IMAGE: tl.constexpr, A_PIXEL: tl.constexpr,
    TAPS: tl.constexpr, KW: tl.constexpr, TILE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """r, z = sigmoid(a_rz + U_rz*h); q = U_n*h + b_hn;
    n = tanh(a_n + r.q); h' = (1-z).n + z.h, state t_next."""
    rows = _rows(N, H, W, K, TILE)
    step = N.to(tl.int64) * H * W
    h += t_h * step * K
    column = rows.column
    mask = rows.there[:, None] & (column < K)[None, :]
    if sums is not None:
        p_sums = sums + (rows.row * (3 * K))[:, None] + column[None, :]
        c_r = tl.load(p_sums, mask=mask, other=0.0).to(tl.float32)
        c_z = tl.load(p_sums + K, mask=mask, other=0.0).to(tl.float32)
        q = tl.load(p_sums + 2 * K, mask=mask, other=0.0).to(tl.float32)
    elif TAPS > 0:
        GATE: tl.constexpr = (K + 7) // 8 * 8
        c_r, c_z, q = _convolve_three(h, weight, N, H, W, rows, K, GATE, TAPS, KW, TILE, PRECISION)
    else:  # there is no weight that could be handed on
        c_r = tl.zeros(mask.shape, dtype=tl.float32)
        c_z, q = c_r, c_r
    if bias_hn is not None:
        q += tl.load(bias_hn + column, mask=column < K, other=0.0).to(tl.float32)[None, :]
    r = _sigmoid(_with_outside(c_r, a, bias, N, H, W, t, rows, column, mask, K, A_IMAGE, A_PIXEL))
    z = _sigmoid(_with_outside(c_z, a, bias, N, H, W, t, rows, K + column, mask, K, A_IMAGE, A_PIXEL))
    n = _tanh(_with_outside(r * q, a, bias, N, H, W, t, rows, 2 * K + column, mask, K, A_IMAGE, A_PIXEL))
    if gates is not None:
        p_gates = gates + ((t * step + rows.row) * (4 * K))[:, None] + column[None, :]
        tl.store(p_gates, r.to(gates.dtype.element_ty), mask=mask)
        tl.store(p_gates + K, z.to(gates.dtype.element_ty), mask=mask)
        tl.store(p_gates + 2 * K, n.to(gates.dtype.element_ty), mask=mask)
        tl.store(p_gates + 3 * K, q.to(gates.dtype.element_ty), mask=mask)
    if state is not None:
        i = (rows.row * K)[:, None] + column[None, :]
        before = tl.load(h + i, mask=mask, other=0.0).to(tl.float32)
        output = output if output is None else output + t * step * K
        state += t_next * step * K
        _advance(state, output, i, mask, lengths, t, rows, before, (1 - z) * n + z * before)


@triton.jit
def _state_gradient(acc, grad_output, carry, i, o_step, mask, lengths, t, rows):
    """-> the gradient of a state, acc + carry + grad_output, or zero past a sample's length; and what is
    carried on if that is so."""
    so_far = acc + tl.load(carry + i, mask=mask, other=0.0)
    grad = so_far + tl.load(grad_output + o_step + i, mask=mask, other=0.0).to(tl.float32)
    passed_on = tl.zeros_like(grad)
    if lengths is not None:
        valid = (t < tl.load(lengths + rows.n, mask=rows.there, other=0))[:, None]
        grad, passed_on = tl.where(valid, grad, 0.0), tl.where(valid, 0.0, so_far)
    return grad, passed_on


@triton.jit(do_not_specialize=STEPS)
def candidate_backward_kernel(
    weight,  # (TAPS,2K,K) of the gradient by U_rz
    sums,
    grad_output,  # (T,N,H,W,K)
    gates,  # (.,N,H,W,3K) r|z|n
    h,  # (T,N,H,W,K) the state before each step
    carry,  # (N,H,W,K) fp32, in and out: what the gradient of the state before is so far
    d,  # (T,N,H,W,3K) in: r and z of step t_next; out: z and n of step t
    d_rz,  # (T,N,H,W,2K) out: z once more, or None
    d_n,  # (T,N,H,W,K) out: n once more, or None
    lengths,
    N, H, W, t, t_next,
    K: tl.constexpr, RELU: tl.constexpr,
    TAPS: tl.constexpr, KW: tl.constexpr, TILE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dh = U_rz^T*d_rz(t_next) + carry + grad_output; d_n = dh.z.(1-n^2) or, with relu, dh.z where n > 0;
    d_z = dh.(n-h).z.(1-z); carry <- dh.(1-z)."""
    rows = _rows(N, H, W, K, TILE)
    step = N.to(tl.int64) * H * W
    acc = _sums(
        d + t_next * step * (3 * K), weight, sums, N, H, W, rows, 2 * K, 3 * K, K, TAPS, KW, TILE, PRECISION
    )
    column = rows.column
    mask = rows.there[:, None] & (column < K)[None, :]
    i = (rows.row * K)[:, None] + column[None, :]
    dh, passed_on = _state_gradient(acc, grad_output, carry, i, t * step * K, mask, lengths, t, rows)
    o_gates = ((t * step + rows.row) * (3 * K))[:, None] + column[None, :]
    z = tl.load(gates + o_gates + K, mask=mask, other=0.0).to(tl.float32)
    n = tl.load(gates + o_gates + 2 * K, mask=mask, other=0.0).to(tl.float32)
    before = tl.load(h + t * step * K + i, mask=mask, other=0.0).to(tl.float32)
    of_z = (dh * (n - before) * z * (1 - z)).to(d.dtype.element_ty)
    of_n = (tl.where(n <= 0, 0.0, dh * z) if RELU else dh * z * (1 - n * n)).to(d.dtype.element_ty)
    tl.store(d + o_gates + K, of_z, mask=mask)
    tl.store(d + o_gates + 2 * K, of_n, mask=mask)
    if d_rz is not None:
        tl.store(d_rz + ((t * step + rows.row) * (2 * K))[:, None] + column[None, :] + K, of_z, mask=mask)
        tl.store(d_n + t * step * K + i, of_n, mask=mask)
    tl.store(carry + i, dh * (1 - z) + passed_on, mask=mask)


@triton.jit(do_not_specialize=STEPS)
def reset_update_backward_kernel(
    weight,  # (TAPS,K,K) of the gradient by U_n
    sums,
    gates,  # (.,N,H,W,3K) r|z|n
    h,  # (T,N,H,W,K) the state before each step
    carry,  # (N,H,W,K) fp32, in and out
    d,  # (T,N,H,W,3K) in: n of step t; out: r
    d_rz,  # (T,N,H,W,2K) out: r once more, or None
    rh,  # (T,N,H,W,K) out, or None
    N, H, W, t,
    K: tl.constexpr, TAPS: tl.constexpr, KW: tl.constexpr, TILE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """g = U_n^T*d_n; d_r = g.h.r.(1-r); carry <- carry + g.r; rh = r.h."""
    rows = _rows(N, H, W, K, TILE)
    step = N.to(tl.int64) * H * W
    images = d + t * step * (3 * K) + 2 * K
    g = _sums(images, weight, sums, N, H, W, rows, K, 3 * K, K, TAPS, KW, TILE, PRECISION)
    column = rows.column
    mask = rows.there[:, None] & (column < K)[None, :]
    i = (rows.row * K)[:, None] + column[None, :]
    o_gates = ((t * step + rows.row) * (3 * K))[:, None] + column[None, :]
    r = tl.load(gates + o_gates, mask=mask, other=0.0).to(tl.float32)
    before = tl.load(h + t * step * K + i, mask=mask, other=0.0).to(tl.float32)
    of_r = (g * before * r * (1 - r)).to(d.dtype.element_ty)
    tl.store(d + o_gates, of_r, mask=mask)
    if d_rz is not None:
        tl.store(d_rz + ((t * step + rows.row) * (2 * K))[:, None] + column[None, :], of_r, mask=mask)
    tl.store(carry + i, tl.load(carry + i, mask=mask, other=0.0) + g * r, mask=mask)
    if rh is not None:
        tl.store(rh + t * step * K + i, (r * before).to(rh.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=STEPS)
def cudnn_step_backward_kernel(
    weight,  # (TAPS,3K,K) of the gradient by U
    sums,
    grad_output,  # (T,N,H,W,K)
    gates,  # (T,N,H,W,4K) r|z|n|q
    h,  # (T,N,H,W,K) the state before each step
    carry,  # (N,H,W,K) fp32, in and out
    d,  # (T,N,H,W,3K) out: r|z|n, the gradients of the pre-activations
    hidden,  # (T,N,H,W,3K) in: of step t_next; out: r|z|q, the gradients of U*h + b
    lengths,
    N, H, W, t, t_next,
    K: tl.constexpr, TAPS: tl.constexpr, KW: tl.constexpr, TILE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dh = U^T*hidden(t_next) + carry + grad_output; d_n = dh.(1-z).(1-n^2); d_z = dh.(h-n).z.(1-z);
    d_r = d_n.q.r.(1-r); d_q = d_n.r; carry <- dh.z."""
    rows = _rows(N, H, W, K, TILE)
    step = N.to(tl.int64) * H * W
    images = hidden + t_next * step * (3 * K)
    acc = _sums(images, weight, sums, N, H, W, rows, 3 * K, 3 * K, K, TAPS, KW, TILE, PRECISION)
    column = rows.column
    mask = rows.there[:, None] & (column < K)[None, :]
    i = (rows.row * K)[:, None] + column[None, :]
    dh, passed_on = _state_gradient(acc, grad_output, carry, i, t * step * K, mask, lengths, t, rows)
    p_gates = gates + ((t * step + rows.row) * (4 * K))[:, None] + column[None, :]
    r = tl.load(p_gates, mask=mask, other=0.0).to(tl.float32)
    z = tl.load(p_gates + K, mask=mask, other=0.0).to(tl.float32)
    n = tl.load(p_gates + 2 * K, mask=mask, other=0.0).to(tl.float32)
    q = tl.load(p_gates + 3 * K, mask=mask, other=0.0).to(tl.float32)
    before = tl.load(h + t * step * K + i, mask=mask, other=0.0).to(tl.float32)
    d_n = dh * (1 - z) * (1 - n * n)
    d_r = (d_n * q * r * (1 - r)).to(d.dtype.element_ty)
    d_z = (dh * (before - n) * z * (1 - z)).to(d.dtype.element_ty)
    o = ((t * step + rows.row) * (3 * K))[:, None] + column[None, :]
    tl.store(d + o, d_r, mask=mask)
    tl.store(d + o + K, d_z, mask=mask)
    tl.store(d + o + 2 * K, d_n.to(d.dtype.element_ty), mask=mask)
    tl.store(hidden + o, d_r, mask=mask)
    tl.store(hidden + o + K, d_z, mask=mask)
    tl.store(hidden + o + 2 * K, (d_n * r).to(d.dtype.element_ty), mask=mask)
    tl.store(carry + i, dh * z + passed_on, mask=mask)


@triton.jit(do_not_specialize=STEPS)
def add_kernel(
    images,  # (N,H,W,.) pixels STRIDE elements apart, C channels
    weight,  # (TAPS,C,K)
    sums,
    carry,  # (N,H,W,K) fp32, in and out
    N, H, W,
    C: tl.constexpr, STRIDE: tl.constexpr, K: tl.constexpr,
    TAPS: tl.constexpr, KW: tl.constexpr, TILE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """carry <- carry + the convolution of images."""
    rows = _rows(N, H, W, K, TILE)
    i = (rows.row * K)[:, None] + rows.column[None, :]
    mask = rows.there[:, None] & (rows.column < K)[None, :]
    acc = _sums(images, weight, sums, N, H, W, rows, C, STRIDE, K, TAPS, KW, TILE, PRECISION)
    tl.store(carry + i, tl.load(carry + i, mask=mask, other=0.0) + acc, mask=mask)


@triton.jit
def transpose_kernel(
    matrices,  # (B,R,C)
    transposed,  # (B,C,R) out
    rows, columns,  # R, C: compiled once for multiples of 16, which are copied as vectors
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """A tile is read along its rows and written along its columns; between, Triton takes it through shared
    memory."""
    across = tl.cdiv(columns, BLOCK_C)
    tiles = tl.cdiv(rows, BLOCK_R) * across
    pid = tl.program_id(0)
    first = (pid // tiles).to(tl.int64) * rows * columns  # of this matrix
    tile = pid % tiles
    r = (tile // across * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)[:, None]
    c = (tile % across * BLOCK_C + tl.arange(0, BLOCK_C)).to(tl.int64)[None, :]
    mask = (r < rows) & (c < columns)
    tl.store(
        transposed + first + c * rows + r, tl.load(matrices + first + r * columns + c, mask=mask), mask=mask
    )
