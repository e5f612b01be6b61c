"""Work on several things side by side, in threads, with the results in the order of the things."""

import ctypes
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

Thing = TypeVar("Thing")
Result = TypeVar("Result")


def in_order(
    work: Callable[[Thing], Result], things: Iterable[Thing], workers: int, threads: int = 1
) -> Iterator[Result]:
    """What `work` makes of each thing, in order; `workers` of them are worked on at once, each with so many threads of
    torch. No more things are taken than are worked on, and one that waits.

    >>> list(in_order(lambda number: number * number, range(4), workers=2))
    [0, 1, 4, 9]
    """
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(workers, initializer=lambda: threads_here(threads)) as pool:
        try:
            for thing in things:
                waiting.append(pool.submit(work, thing))
                if len(waiting) > workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def split_over_threads(function: Callable[[Tensor], list[Tensor]], batch: Tensor) -> list[Tensor]:
    """What a function without gradients makes of a batch (b, …): on a CPU each thread of torch has a part of it, and
    none waits for the others. Where threads cannot differ in what they use of torch, the batch stays whole."""
    threads = torch.get_num_threads()
    workers = min(threads, len(batch))
    if batch.device.type != "cpu" or workers < 2 or not threads_can_differ():
        return function(batch)
    parts = list(in_order(torch.inference_mode()(function), batch.tensor_split(workers), workers, threads // workers))
    return [torch.cat(results) for results in zip(*parts, strict=True)]


def threads_can_differ() -> bool:
    """Whether each thread can have its own number of torch's threads: with OpenMP, but not on Windows.

    Otherwise each of several workers would start as many threads of torch as all of them together should have.
    """
    try:
        return hasattr(ctypes.CDLL(None), "omp_set_num_threads")
    except (OSError, TypeError):  # Windows has no library of the whole process
        return False


def threads_here(number: int) -> None:
    """Let torch use so many threads in the thread that calls this, and leave those of others as they are.

    `torch.set_num_threads` would also change what the model's matrix products use in other threads.
    """
    torch.get_num_threads()  # torch sets the number of a new thread when it is first asked for
    if threads_can_differ():
        ctypes.CDLL(None).omp_set_num_threads(number)
