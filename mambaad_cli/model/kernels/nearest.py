"""Mean distance to the nearest patches of a memory: a kernel (cpu_nearest.h) on the CPU.

Letters: p points, m patches of the memory, c channels.
"""

import ctypes
import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from mambaad_cli.model.kernels import cpu
from mambaad_cli.model.quantised import STEPS, stored

BLOCK = 256  # points that are compared with the patches at a time on a CPU
GPU_PRODUCTS = 2**27  # of points with patches at a time on a GPU: half a gigabyte
DEALT = 8  # values of a row in one column while the smallest are searched
MOST_KEPT = 16  # patches that the kernel can keep of a point
ALSO_KEPT = 3  # more than are wanted, because 8-bit integers and rounded points may change their order
PANEL = 16  # patches that lie together, as cpu.c has it
_packed = WeakIdKeyDictionary()  # patches as the kernel reads them, as long as they are in use


def nearest_distances(points: Tensor, patches: Tensor, spacing: Tensor, count: int) -> Tensor:
    """Mean distance of points (p, c) to the `count` nearest of patches (m, c), each in units of its spacing (m,): (p,).

    The kernel takes patches as they are stored, as 8-bit integers times a step. Without it a CPU compares a block of
    points at a time, so that their products with the patches stay in the cache. A GPU compares all of them at once, or
    as many as its memory has room for.
    """
    count = min(count, len(patches))
    if count <= MOST_KEPT - ALSO_KEPT and cpu.suit(points, patches, spacing):
        return _compiled(points, patches, spacing, count)
    lengths, squares, means = patches.square().sum(1), points.square().sum(1), points.new_empty(len(points))
    rows = BLOCK if points.device.type == "cpu" else max(BLOCK, GPU_PRODUCTS // len(patches))
    products = points.new_empty(min(rows, len(points)), len(patches))
    for start in range(0, len(points), rows):
        block = slice(start, start + rows)
        dots = torch.mm(points[block], patches.T, out=products[: len(points[block])])
        nearest_ref(dots, squares[block], lengths, spacing, count, means[block])
    return means


def nearest_ref(products: Tensor, squares: Tensor, lengths: Tensor, spacing: Tensor, count: int, means: Tensor) -> None:
    """From the products (p, m) of a block and squared lengths (p,) and (m,) into means (p,), in PyTorch's operators."""
    squared, which = smallest(lengths - 2 * products, count)
    distances = (squared + squares[:, None]).clamp(min=0).sqrt()
    torch.mean(distances / spacing[which], 1, out=means)


def _compiled(points: Tensor, patches: Tensor, spacing: Tensor, count: int) -> Tensor:
    packed = _packed.get(patches)
    if packed is None:
        packed = _packed[patches] = _pack(patches)
    integers, steps, lengths = packed
    c, pairs = points.shape[1], integers.shape[1]
    means = points.new_empty(len(points))
    tensors = {"points": points.contiguous(), "patches": integers, "steps": steps, "lengths": lengths}
    tensors |= {"originals": patches.contiguous(), "spacing": spacing.contiguous(), "distances": means}
    largest = min(2**15 - 1, 2**31 // (STEPS * 2 * pairs) - 1)  # of a point's integers, so that no sum overflows
    numbers = {"rows": len(points), "c": c, "pairs": pairs, "largest": largest}
    numbers |= {"m": len(patches), "count": count, "kept": min(count + ALSO_KEPT, MOST_KEPT, len(patches))}
    cpu.call("mambaad_nearest", _Nearest, tensors, **numbers)
    return means


def _pack(patches: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Patches (m, c) as the kernel reads them: integers (m / PANEL, c / 2, PANEL, 2), steps (m,), squared lengths (m,),
    all rounded up, with lengths that are infinite where there is no patch."""
    integers, steps = stored(patches)
    m, c = patches.shape
    more = -m % PANEL
    steps = steps.float().flatten()
    lengths = integers.int().square().sum(1).float() * steps.square()
    lengths = F.pad(lengths, (0, more), value=math.inf)
    panels = F.pad(integers.short(), (0, c % 2, 0, more)).view(-1, PANEL, (c + 1) // 2, 2)
    return panels.transpose(1, 2).contiguous(), F.pad(steps, (0, more)), lengths


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

    _fields_ = cpu.fields(
        "rows c pairs m count kept largest", "points patches steps lengths originals spacing distances"
    )
