"""Several processes that work as one, under torchrun: each does its share, and only the first prints and writes.

Without torchrun there is one process, and the functions here do nothing. torch is imported inside them, so that the
command learns its rank without loading torch.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

from mambaad_cli import MambaADError

if TYPE_CHECKING:
    from torch import Tensor, nn

met = False  # whether the processes were ever joined; until then all of them do and print the same

T = TypeVar("T")
R = TypeVar("R")


def world() -> int:
    """The number of processes: that of torchrun, else one."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "MASTER_ADDR" in os.environ else 1


def rank() -> int:
    """The number of this process; 0 prints and writes."""
    return int(os.environ.get("RANK", "0")) if world() > 1 else 0


@contextmanager
def joined(device: str) -> Iterator[None]:
    """A context in which the processes are connected, by gloo, and by nccl for tensors on a GPU."""
    if world() == 1:
        yield
        return
    import torch
    import torch.distributed as dist

    global met
    met = True
    on_gpu = device.startswith("cuda")
    if on_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def share(n: int) -> slice:
    """This process's part of n images; the sizes of the parts differ by one at most.

    >>> share(8)
    slice(0, 8, None)
    """
    each, more = divmod(n, world())
    start = rank() * each + min(rank(), more)
    return slice(start, start + each + (rank() < more))


def pick_device(device: str) -> str:
    """The device for auto, cpu, cuda or cuda:N. Under torchrun each process of a machine gets a GPU of its own.

    Raises MambaADError for a device that does not exist.
    """
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        device = "cuda" if count else "cpu"
    if device == "cuda" and count and world() > 1:
        return _gpu_of_this_process(count)
    available = ["cpu", *(["cuda"] if count else []), *(f"cuda:{i}" for i in range(count))]
    if device not in available:
        raise MambaADError(f"no device {device!r} on this machine: leave out --device, or use {' or '.join(available)}")
    return device


def _gpu_of_this_process(count: int) -> str:
    """cuda:N for the N-th process of this machine. NCCL refuses two processes on one GPU."""
    place = int(os.environ.get("LOCAL_RANK", "0"))
    if place >= count:
        gpus = "1 GPU" if count == 1 else f"{count} GPUs"
        raise MambaADError(
            f"this machine has {gpus} for more processes than that: start torchrun with --nproc-per-node {count}, "
            "or take --device cpu"
        )
    return f"cuda:{place}"


def all_sum(x: "Tensor") -> "Tensor":
    """x, replaced in place by the sum of all processes' x. Raises MambaADError if one of them has ended."""
    if world() > 1:
        import torch.distributed as dist

        with _others_alive():
            dist.all_reduce(x)
    return x


def anywhere(true: bool) -> bool:
    """Whether `true` holds in any process."""
    import torch

    return true if world() == 1 else bool(all_sum(torch.tensor(int(true))))


def from_first(value: T) -> T:
    """The first process's value."""
    if world() == 1:
        return value
    import torch.distributed as dist

    values = [value]
    with _others_alive():
        dist.broadcast_object_list(values)
    return values[0]


def sum_gradients(parameters: "Iterable[nn.Parameter]", loss: "Tensor") -> "Tensor":
    """Add up the gradients of all processes in place, and return the sum of their losses: those of the whole batch."""
    if world() == 1:
        return loss
    import torch

    grads = [p.grad for p in parameters if p.grad is not None]
    whole = all_sum(torch.cat([loss.view(1), *(grad.flatten() for grad in grads)]))
    parts = whole.split([1, *(grad.numel() for grad in grads)])
    for grad, part in zip(grads, parts[1:], strict=True):
        grad.copy_(part.view_as(grad))
    return parts[0][0]


def in_order(work: Callable[[Sequence[T]], Iterable[R]], items: Sequence[T], batch: int) -> Iterator[R]:
    """The results of `work` for the items, one each, in their order, in the first process; nothing in the others.

    Batches go to the processes in turn, and results come back in rounds, so memory holds the results of one round.
    """
    if world() == 1:
        yield from work(items)
        return
    import torch.distributed as dist

    batches = [items[start : start + batch] for start in range(0, len(items), batch)]
    share_of_batches = batches[rank() :: world()]
    results = iter(work([item for part in share_of_batches for item in part]))
    with joined("cpu"):
        for turn in range(-(-len(batches) // world())):
            done = list(islice(results, len(share_of_batches[turn]))) if turn < len(share_of_batches) else []
            everyones: list[list[R]] = [[] for _ in range(world())]
            with _others_alive():
                dist.gather_object(done, everyones if rank() == 0 else None)
            for part in everyones:
                yield from part


@contextmanager
def _others_alive() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise MambaADError("another process ended before its work was done: see what it said") from error
