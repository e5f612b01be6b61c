"""Work in threads, with its results in order."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from mambaad_cli import side_by_side
from mambaad_cli.api import FittedModel
from mambaad_cli.inspection.torch_scorer import TorchScorer
from mambaad_cli.side_by_side import in_order, split_over_threads, threads_can_differ, threads_here


def test_a_thread_sets_its_own_number_of_threads_and_leaves_the_others_as_they_are() -> None:
    before = torch.get_num_threads()
    with ThreadPoolExecutor(1, initializer=lambda: threads_here(1)) as pool:
        assert pool.submit(torch.get_num_threads).result() == 1
    assert torch.get_num_threads() == before


def test_results_come_in_order_while_others_are_worked_on() -> None:
    together = threading.Barrier(2, timeout=10)

    def work(number: int) -> int:
        together.wait()  # passes only where two are worked on at once
        time.sleep(0.01 * (number % 2))
        return number

    assert list(in_order(work, range(8), workers=2)) == list(range(8))


def test_no_more_is_taken_than_is_worked_on_and_one_that_waits() -> None:
    taken: list[int] = []

    def things() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            yield number

    results = in_order(lambda number: number, things(), workers=3)
    for number in range(10):
        assert next(results) == number
        assert len(taken) <= number + 1 + 3
    results.close()  # type: ignore[attr-defined]
    assert len(taken) < 20


def test_an_error_comes_out_where_its_result_would() -> None:
    results = in_order(lambda number: 1 / number, (2, 1, 0, 3), workers=2)
    assert [next(results), next(results)] == [0.5, 1.0]
    with pytest.raises(ZeroDivisionError):
        next(results)


@pytest.mark.parametrize("images", [1, 2, 7])
def test_a_batch_that_is_split_gives_the_same(images: int) -> None:
    batch = torch.rand(images, 3)
    found = split_over_threads(lambda part: [part + 1, part.sum(1)], batch)
    assert torch.equal(found[0], batch + 1)
    assert torch.equal(found[1], batch.sum(1))


class NoLibrary:
    """ctypes as it is on Windows."""

    @staticmethod
    def CDLL(name: str | None) -> None:
        raise TypeError("expected a name")


def test_where_threads_cannot_differ_nothing_runs_side_by_side(
    tiny_model: FittedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each worker would start as many threads of torch as all of them together should have."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    scorer = tiny_model.scorer
    assert isinstance(scorer, TorchScorer)
    parts: list[int] = []

    def counted(part: torch.Tensor) -> list[torch.Tensor]:
        parts.append(len(part))
        return [part]

    split_over_threads(counted, torch.rand(6, 2))
    assert (scorer.side_by_side, sorted(parts)) == (3, [2, 2, 2])
    monkeypatch.setattr(side_by_side, "ctypes", NoLibrary)
    assert not threads_can_differ()
    threads_here(1)  # changes nothing
    parts.clear()
    split_over_threads(counted, torch.rand(6, 2))
    assert (scorer.side_by_side, parts) == (1, [6])
