"""The selective scan by Triton kernels of our own.

Letters, shapes and the recurrence are those of selective_scan.py. All tensors are float32 and contiguous; `order` is
int32.
"""

import math

import torch
from torch import Tensor

from mambaad_cli.model.kernels.plain_scan import Grads

try:
    import triton
    import triton.language as tl
except Exception:  # a broken installation raises more than ImportError
    triton = None

# A program handles one image, one direction and a block of channels. It goes through positions with the states of these
# channels, and with A, in registers as (states, channels), so that a warp's threads stand for channels.
# torch does the projections and all sums over programs: without atomics the same input gives the same bits.
#
# The scan has two forms. In one pass a program goes through all l positions. In three passes, as in `chunked_scan`, it
# goes through a chunk of √l of them: first from a state of zero, which gives what the chunk adds to the state that
# enters it; then a short loop carries the states over the chunks; then each chunk gives its outputs, from the state
# that enters it. That is twice the work in 2·√l steps instead of l, by √l times as many programs.

FORWARD_BLOCK, BACKWARD_BLOCK = 16, 32  # channels of a program; wider in backward, which writes dB and dC once a block
CARRY_BLOCK = 32  # states of a program of the second pass, of all channels: one for each thread of a warp
SCHEDULERS = 4  # of a multiprocessor. Each has a warp to run only where there are as many programs

# Sizes that differ between the stages of a network and between sizes of images: Triton would compile a kernel again
# for each combination of those that are 1 or a multiple of 16. Addresses are multiples of 16 by d and n alone.
SIZES = ("l", "k", "r", "chunk", "chunks")

COMPILED = {"num_warps": 1, "enable_fp_fusion": True}  # explicit: Triton's default is about to change

if triton is not None:

    @triton.jit
    def _softplus(x):  # type: ignore[no-untyped-def]
        """log(1 + e^x) and its slope. Dividing by the rounded increase of 1 keeps the digits of a tiny e."""
        e = tl.exp(-tl.abs(x))
        rounded = 1.0 + e
        log1p = tl.where(rounded == 1.0, e, tl.log(rounded) * (e / tl.where(rounded == 1.0, 1.0, rounded - 1.0)))
        return tl.maximum(x, 0.0) + log1p, tl.where(x > 0, 1.0, e) / rounded

    @triton.jit
    def _place(k, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr):  # type: ignore[no-untyped-def]
        """This program's image · k + direction, image, direction, channels (BLOCK_D) and states (BLOCK_N)."""
        pair = tl.program_id(0).to(tl.int64)  # with large batches offsets need more than 32 bits
        channels = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
        return pair, pair // k, pair % k, channels, tl.arange(0, BLOCK_N)

    @triton.jit
    def _read(u, x, delta, position, image, direction, channels, states, l, k, d, n, r):  # type: ignore[no-untyped-def]
        """u, dt and its slope (BLOCK_D), B and C (BLOCK_N) at one position; zeros for u, B and C beyond d and n."""
        row = image * l + position
        u = tl.load(u + row * d + channels, mask=channels < d, other=0.0)
        cells = delta + ((image * k + direction) * l + position) * d + channels
        dt, slope = _softplus(tl.load(cells, mask=channels < d, other=0.0))
        selected = x + (row * k + direction) * (r + 2 * n) + r + states
        B = tl.load(selected, mask=states < n, other=0.0)
        C = tl.load(selected + n, mask=states < n, other=0.0)
        return u, dt, slope, B, C

    @triton.jit(do_not_specialize=SIZES)
    def _ends_kernel(  # type: ignore[no-untyped-def]
        u, x, delta, A, order, ends, total_dt, l, k, d, n, r, chunk, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
    ):  # fmt: skip
        """The first pass. ends: the state after each chunk that a state of zero enters (b, k, chunks, n, d).

        total_dt: the sum of dt over each chunk, by which it decays the state that enters it (b, k, chunks, d).
        """
        pair, image, direction, channels, states = _place(k, BLOCK_D, BLOCK_N)
        real = (states < n)[:, None] & (channels < d)[None, :]
        cells = states[:, None] * d + channels[None, :]
        a = tl.load(A + direction * n * d + cells, mask=real, other=0.0)
        h = tl.zeros((BLOCK_N, BLOCK_D), dtype=tl.float32)
        total = tl.zeros((BLOCK_D,), dtype=tl.float32)
        first = tl.program_id(2) * chunk
        for t in tl.range(first, tl.minimum(first + chunk, l), num_stages=3):
            position = tl.load(order + direction * l + t)
            u_t, dt, _, B, _ = _read(u, x, delta, position, image, direction, channels, states, l, k, d, n, r)
            h = tl.exp(dt[None, :] * a) * h + B[:, None] * (dt * u_t)[None, :]
            total += dt
        row = pair * tl.num_programs(2) + tl.program_id(2)
        tl.store(ends + row * n * d + cells, h, mask=real)
        tl.store(total_dt + row * d + channels, total, mask=channels < d)

    @triton.jit(do_not_specialize=SIZES)
    def _carry_kernel(A, ends, total_dt, borders, k, d, n, chunks, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
        """The second pass. borders: the state that enters each chunk (b, k, chunks, n, d)."""
        pair = tl.program_id(0).to(tl.int64)
        cells = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        real = cells < n * d
        a = tl.load(A + pair % k * n * d + cells, mask=real, other=0.0)
        h = tl.zeros((BLOCK,), dtype=tl.float32)
        for i in tl.range(0, chunks, num_stages=3):
            row = pair * chunks + i
            tl.store(borders + row * n * d + cells, h, mask=real)
            total = tl.load(total_dt + row * d + cells % d, mask=real, other=0.0)
            h = tl.exp(total * a) * h + tl.load(ends + row * n * d + cells, mask=real, other=0.0)

    @triton.jit(do_not_specialize=SIZES)
    def _forward_kernel(  # type: ignore[no-untyped-def]
        u, x, delta, A, order, borders, y, l, k, d, n, r, chunk, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
    ):  # fmt: skip
        """The third pass, or the only one if there is a single chunk: then no borders are read.

        y, without the skip: (b, k, l, d).
        """
        pair, image, direction, channels, states = _place(k, BLOCK_D, BLOCK_N)
        real = (states < n)[:, None] & (channels < d)[None, :]
        cells = states[:, None] * d + channels[None, :]
        a = tl.load(A + direction * n * d + cells, mask=real, other=0.0)
        first = tl.program_id(2) * chunk
        border = (pair * tl.num_programs(2) + tl.program_id(2)) * n * d
        h = tl.load(borders + border + cells, mask=real & (first > 0), other=0.0)
        for t in tl.range(first, tl.minimum(first + chunk, l), num_stages=3):
            position = tl.load(order + direction * l + t)
            u_t, dt, _, B, C = _read(u, x, delta, position, image, direction, channels, states, l, k, d, n, r)
            h = tl.exp(dt[None, :] * a) * h + B[:, None] * (dt * u_t)[None, :]
            tl.store(y + (pair * l + position) * d + channels, tl.sum(h * C[:, None], axis=0), mask=channels < d)

    @triton.jit(do_not_specialize=SIZES)
    def _backward_kernel(  # type: ignore[no-untyped-def]
        dy, u, x, delta, A, order, borders, history, du, d_delta, d_selected, dA, l, k, d, n, r, chunk,
        BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
    ):  # fmt: skip
        """From the last chunk to the first: its states again, into history (b, k, chunk, n, d), then back along them.

        du (without the skip), d_delta: (b, k, l, d); d_selected, of B and C: (blocks, b, l, k, 2n); dA: (b, k, n, d).
        """
        pair, image, direction, channels, states = _place(k, BLOCK_D, BLOCK_N)
        real = (states < n)[:, None] & (channels < d)[None, :]
        cells = states[:, None] * d + channels[None, :]
        a = tl.load(A + direction * n * d + cells, mask=real, other=0.0)
        da = tl.zeros((BLOCK_N, BLOCK_D), dtype=tl.float32)
        dh = tl.zeros((BLOCK_N, BLOCK_D), dtype=tl.float32)
        chunks = tl.cdiv(l, chunk)
        for back in range(0, chunks):
            first = (chunks - 1 - back) * chunk
            length = tl.minimum(chunk, l - first)
            h = tl.load(borders + (pair * chunks + chunks - 1 - back) * n * d + cells, mask=real, other=0.0)
            for i in tl.range(0, length, num_stages=3):
                tl.store(history + (pair * chunk + i) * n * d + cells, h, mask=real)
                position = tl.load(order + direction * l + first + i)
                u_t, dt, _, B, _ = _read(u, x, delta, position, image, direction, channels, states, l, k, d, n, r)
                h = tl.exp(dt[None, :] * a) * h + B[:, None] * (dt * u_t)[None, :]
            tl.debug_barrier()  # another thread may load what one thread stored
            for step in tl.range(0, length, num_stages=3):
                i = length - 1 - step
                position = tl.load(order + direction * l + first + i)
                u_t, dt, slope, B, C = _read(u, x, delta, position, image, direction, channels, states, l, k, d, n, r)
                dy_t = tl.load(dy + (image * l + position) * d + channels, mask=channels < d, other=0.0)
                before = tl.load(history + (pair * chunk + i) * n * d + cells, mask=real, other=0.0)
                dh += C[:, None] * dy_t[None, :]
                dB = tl.sum(dh * (dt * u_t)[None, :], axis=1)
                dC = tl.sum(h * dy_t[None, :], axis=1)
                d_dtu = tl.sum(dh * B[:, None], axis=0)
                dh = tl.exp(dt[None, :] * a) * dh
                d_exponent = dh * before
                da += d_exponent * dt[None, :]
                d_dt = tl.sum(d_exponent * a, axis=0) + d_dtu * u_t
                row = (pair * l + position) * d + channels
                tl.store(du + row, d_dtu * dt, mask=channels < d)
                tl.store(d_delta + row, d_dt * slope, mask=channels < d)
                row = tl.program_id(1) * tl.num_programs(0).to(tl.int64) * l + (image * l + position) * k + direction
                tl.store(d_selected + row * 2 * n + states, dB, mask=states < n)
                tl.store(d_selected + row * 2 * n + n + states, dC, mask=states < n)
                h = before
            tl.debug_barrier()  # before the next chunk overwrites the history
        tl.store(dA + pair * n * d + cells, da, mask=real)


def triton_scan(
    u: Tensor, x: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor, order: Tensor
) -> Tensor:
    """As `reference_scan`, by the kernels above in the form that suits the GPU."""
    (b, _, d), k = u.shape, A.shape[0]
    programs = b * k * -(-d // FORWARD_BLOCK)
    scan = three_pass_scan if takes_three_passes(programs, multiprocessor_count(u.device)) else one_pass_scan
    return scan(u, x, dt_weight, dt_bias, A, D, order)


def takes_three_passes(programs: int, multiprocessors: int) -> bool:
    """Whether a scan takes three passes: where in one pass some schedulers of the GPU would have no program to run.

    programs: those of one pass, b · k · ⌈d / 16⌉, each of them a warp. One photo at stride 4 in two directions of 48
    channels has 6, 128 such photos have 768; an H100 has 132 multiprocessors with 4 schedulers each.

    >>> takes_three_passes(programs=6, multiprocessors=132), takes_three_passes(programs=768, multiprocessors=132)
    (True, False)
    """
    return programs < SCHEDULERS * multiprocessors


def multiprocessor_count(device: torch.device) -> int:
    """Those of a GPU. Triton's interpreter, which works on the CPU, runs one program after the other: 1."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def one_pass_scan(
    u: Tensor, x: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor, order: Tensor
) -> Tensor:
    """As `reference_scan`, by programs that go through all positions."""
    delta, A = _project_dt(x, dt_weight, dt_bias), A.mT.contiguous()
    return _outputs(u, x, delta, A, D, order, borders=u.new_empty(1), chunk=u.shape[1])


def three_pass_scan(
    u: Tensor, x: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor, order: Tensor
) -> Tensor:
    """As `reference_scan`, by programs that go through chunks of √l positions."""
    delta, A = _project_dt(x, dt_weight, dt_bias), A.mT.contiguous()
    return _outputs(u, x, delta, A, D, order, _borders(u, x, delta, A, order), chunk=math.isqrt(u.shape[1]))


FORMS = {"one pass": one_pass_scan, "three passes": three_pass_scan}


def triton_backward(
    dy: Tensor, u: Tensor, x: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor, order: Tensor
) -> Grads:
    """As `selective_scan_backward`, by the kernels above. The states that enter the chunks are computed again."""
    (b, l, d), (k, _, n) = u.shape, A.shape
    delta, A = _project_dt(x, dt_weight, dt_bias), A.mT.contiguous()
    borders = _borders(u, x, delta, A, order)
    grid, settings = _launch(u, x, A, BACKWARD_BLOCK, math.isqrt(l))
    history = u.new_empty(b, k, settings["chunk"], n, d)
    du, d_delta = torch.empty_like(delta), torch.empty_like(delta)
    d_selected, dA = u.new_empty(grid[1], b, l, k, 2 * n), u.new_empty(b, k, n, d)
    _backward_kernel[grid[:2]](
        dy, u, x, delta, A, order, borders, history, du, d_delta, d_selected, dA, **settings
    )  # fmt: skip
    low = x[..., : dt_weight.shape[2]].transpose(1, 2)  # (b, k, l, r)
    d_low = (d_delta @ dt_weight).transpose(1, 2)
    return (
        torch.addcmul(du.sum(1), D.sum(0), dy),
        torch.cat([d_low, d_selected.sum(0)], dim=-1),
        (d_delta.transpose(2, 3) @ low).sum(0),
        d_delta.sum((0, 2)),
        dA.sum(0).mT.contiguous(),
        (dy * u).sum((0, 1)).repeat(k, 1),
    )


def _project_dt(x: Tensor, dt_weight: Tensor, dt_bias: Tensor) -> Tensor:
    """dt before softplus, in raster order: (b, k, l, d), contiguous."""
    low = x[..., : dt_weight.shape[2]].transpose(1, 2)
    return (low @ dt_weight.transpose(1, 2)).add_(dt_bias[:, None]).contiguous()


def _borders(u: Tensor, x: Tensor, delta: Tensor, A: Tensor, order: Tensor) -> Tensor:
    """The states that enter chunks of √l positions: (b, k, chunks, n, d), by the first two passes. A: (k, n, d)."""
    (b, _, d), (k, n, _) = u.shape, A.shape
    grid, settings = _launch(u, x, A, FORWARD_BLOCK, math.isqrt(u.shape[1]))
    chunks = grid[2]
    ends, total_dt = u.new_empty(b, k, chunks, n, d), u.new_empty(b, k, chunks, d)
    _ends_kernel[grid](u, x, delta, A, order, ends, total_dt, **settings)
    borders = torch.empty_like(ends)
    _carry_kernel[b * k, -(-n * d // CARRY_BLOCK)](
        A, ends, total_dt, borders, k=k, d=d, n=n, chunks=chunks, BLOCK=CARRY_BLOCK, **COMPILED
    )
    return borders


def _outputs(
    u: Tensor, x: Tensor, delta: Tensor, A: Tensor, D: Tensor, order: Tensor, borders: Tensor, chunk: int
) -> Tensor:
    """y, in raster order and with the skip: (b, l, d). A: (k, n, d)."""
    y = torch.empty_like(delta)
    grid, settings = _launch(u, x, A, FORWARD_BLOCK, chunk)
    _forward_kernel[grid](u, x, delta, A, order, borders, y, **settings)
    return torch.addcmul(y.sum(1), D.sum(0), u)


def _launch(u: Tensor, x: Tensor, A: Tensor, block: int, chunk: int) -> tuple[tuple[int, int, int], dict[str, int]]:
    """The grid of programs, by images · directions, blocks of channels and chunks, and the arguments of each kernel.

    A: (k, n, d). Chunks of √l positions keep the fewest states.
    """
    (b, l, d), (k, n, _) = u.shape, A.shape
    settings = {"l": l, "k": k, "d": d, "n": n, "r": x.shape[3] - 2 * n, "chunk": chunk}
    settings |= {"BLOCK_D": block, "BLOCK_N": 1 << (n - 1).bit_length(), **COMPILED}
    return (b * k, -(-d // block), -(-l // chunk)), settings
