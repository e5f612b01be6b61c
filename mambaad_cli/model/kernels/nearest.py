"""Mean distance to the nearest patches of a memory: a kernel (cpu_nearest.h) on the CPU.

Letters: p points, m patches of the memory, c channels.
"""

import ctypes

import torch
from torch import Tensor

from mambaad_cli.model.kernels import cpu

BLOCK = 256  # points that are compared with the patches at a time on a CPU
GPU_PRODUCTS = 2**27  # of points with patches at a time on a GPU: half a gigabyte
DEALT = 8  # values of a row in one column while the smallest are searched
MAX_NEIGHBOURS = 16  # that the kernel can keep of a point


def nearest_distances(points: Tensor, patches: Tensor, spacing: Tensor, count: int) -> Tensor:
    """Mean distance of points (p, c) to the `count` nearest of patches (m, c), each in units of its spacing (m,): (p,).

    On a CPU a block of points is compared at a time, so that their products with the patches stay in the cache. A GPU
    compares all of them at once, or as many as its memory has room for.
    """
    count, lengths = min(count, len(patches)), patches.square().sum(1)
    squares, means = points.square().sum(1), points.new_empty(len(points))
    compiled = count <= MAX_NEIGHBOURS and cpu.suit(points, patches, spacing)
    rows = BLOCK if points.device.type == "cpu" else max(BLOCK, GPU_PRODUCTS // len(patches))
    products = points.new_empty(min(rows, len(points)), len(patches))
    for start in range(0, len(points), rows):
        block = slice(start, start + rows)
        dots = torch.mm(points[block], patches.T, out=products[: len(points[block])])
        nearest = _nearest if compiled else nearest_ref
        nearest(dots, squares[block], lengths, spacing, count, means[block])
    return means


def nearest_ref(products: Tensor, squares: Tensor, lengths: Tensor, spacing: Tensor, count: int, means: Tensor) -> None:
    """What the kernel does with the products (p, m) of a block and squared lengths (p,) and (m,), into means (p,)."""
    squared, which = smallest(lengths - 2 * products, count)
    distances = (squared + squares[:, None]).clamp(min=0).sqrt()
    torch.mean(distances / spacing[which], 1, out=means)


def _nearest(products: Tensor, squares: Tensor, lengths: Tensor, spacing: Tensor, count: int, means: Tensor) -> None:
    rows, m = products.shape
    tensors = {"products": products, "own": squares, "lengths": lengths, "spacing": spacing, "distances": means}
    parts = min(rows, 4 * torch.get_num_threads())
    cpu.call("mambaad_nearest", _Nearest, tensors, rows=rows, m=m, count=count, parts=parts)


def smallest(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` smallest values (p, count) of each row (p, m), smallest first, and their places.

    Each row is dealt into columns. The smallest values lie in the columns with the smallest minima, so that only these
    are searched: what topk finds, in less time.

    >>> smallest(torch.tensor([[4.0, 1.0, 3.0, 2.0]]), 2)
    (tensor([[1., 2.]]), tensor([[1, 3]]))
    """
    rows, m = values.shape
    dealt = m // DEALT
    if dealt < 40 * count:  # topk itself is as fast
        topk = values.topk(min(count, m), dim=1, largest=False)
        return topk.values, topk.indices
    table = values[:, : DEALT * dealt].view(rows, DEALT, dealt)
    columns = table.amin(1).topk(count, dim=1, largest=False).indices
    places = (columns[:, None] + dealt * torch.arange(DEALT, device=values.device)[:, None]).flatten(1)
    rest = torch.arange(DEALT * dealt, m, device=values.device).expand(rows, -1)
    places = torch.cat([places, rest], dim=1)
    topk = values.gather(1, places).topk(count, dim=1, largest=False)
    return topk.values, places.gather(1, topk.indices)


class _Nearest(ctypes.Structure):
    """struct Nearest of cpu.c."""

    _fields_ = cpu.fields("rows m count parts", "products own lengths spacing distances")
