"""A training can be stopped at any step and goes on to the same model, or says why it cannot."""

import os
import resource
import signal
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mambaad_cli import MambaADError
from mambaad_cli.data import images
from mambaad_cli.data.roi import MaskFolder
from mambaad_cli.inspection.model_record import ModelRecord
from mambaad_cli.inspection.weights_file import read_state_dict
from mambaad_cli.training import loop
from tests.conftest import picture
from tests.training.conftest import (
    counted,
    same,
    scores_of,
    stop_at,
)


@pytest.mark.parametrize("step", [1, 3])
def test_a_stopped_run_goes_on_to_the_weights_of_one_that_was_never_stopped(
    run: Callable[..., ModelRecord], never_stopped: ModelRecord, tmp_path: Path, step: int
) -> None:
    checkpoint = tmp_path / "checkpoint"
    with pytest.raises(KeyboardInterrupt):
        run(checkpoint=checkpoint, on_step=stop_at(step))
    seen: list[int] = []
    resumed = run(checkpoint=checkpoint, resume=True, on_step=lambda at, *_: seen.append(at))
    assert seen == list(range(step + 1, 4))
    assert same(resumed, never_stopped)


def test_random_numbers_go_on_where_they_were(run: Callable[..., ModelRecord], tmp_path: Path) -> None:
    """With DropPath a step draws some."""
    checkpoint = tmp_path / "checkpoint"
    with pytest.raises(KeyboardInterrupt):
        run(checkpoint=checkpoint, on_step=stop_at(1), drop_path=0.5)
    torch.manual_seed(99)
    assert same(run(checkpoint=checkpoint, resume=True, drop_path=0.5), run(drop_path=0.5))


def test_ctrl_c_in_the_middle_of_a_step_loses_and_repeats_nothing(
    run: Callable[..., ModelRecord], never_stopped: ModelRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, clip, calls = tmp_path / "checkpoint", torch.nn.utils.clip_grad_norm_, []
    before = signal.getsignal(signal.SIGINT)  # ignored where a shell started us in the background

    def clip_and_interrupt(*values: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return clip(*values)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", clip_and_interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(checkpoint=checkpoint)
    assert checkpoint.exists()
    assert same(run(checkpoint=checkpoint, resume=True), never_stopped)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_checkpoint_is_written_whenever_its_time_has_come(
    run: Callable[..., ModelRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "SAVE_EVERY", -1.0)
    present: list[bool] = []
    run(checkpoint=tmp_path / "checkpoint", on_step=lambda *_: present.append((tmp_path / "checkpoint").exists()))
    assert present == [False, True, True]


@pytest.mark.parametrize("change", ["images", "content", "settings", "seed", "weights", "folds", "flips", "recipe"])
def test_a_checkpoint_of_another_run_is_refused_in_one_line(
    run: Callable[..., ModelRecord], tmp_path: Path, goods: Path, weights: Path, change: str
) -> None:
    checkpoint = tmp_path / "checkpoint"
    with pytest.raises(KeyboardInterrupt):
        run(checkpoint=checkpoint, on_step=stop_at(1))
    choices: dict[str, Any] = {}
    if change == "images":
        images.write(goods / "nut" / "new.png", picture(50))
    elif change == "content":
        path = goods / "nut" / "0.png"
        data = bytearray(path.read_bytes())
        data[-20] ^= 1  # of the same size in bytes; no longer a sound image, but that is not asked
        path.write_bytes(bytes(data))
    elif change == "settings":
        choices["letterbox"] = True
    elif change == "seed":
        choices["seed"] = 43  # it would hold out images that were learnt from
    elif change in ("folds", "flips", "recipe"):
        choices |= {"folds": {"folds": 3}, "flips": {"flips": True}, "recipe": {"cut_paste": False}}[change]
    elif change == "weights":
        choices["encoder_weights"] = tmp_path / "other.safetensors"
        state = read_state_dict(weights)
        save_file({name: 2 * tensor for name, tensor in state.items()}, choices["encoder_weights"])
    with pytest.raises(MambaADError, match=r"checkpoint of other images or settings: fit without --resume$"):
        run(checkpoint=checkpoint, resume=True, **choices)


@pytest.mark.parametrize("change", ["without", "edited", "renamed"])
def test_a_checkpoint_of_other_masks_is_refused(
    run: Callable[..., ModelRecord], goods: Path, tmp_path: Path, change: str
) -> None:
    checkpoint, folder = tmp_path / "checkpoint", tmp_path / "masks"
    for i in range(6):
        images.write(folder / f"{i}.png", np.full((80, 96, 3), 255, np.uint8))
    files = images.find([goods / "nut"])
    with pytest.raises(KeyboardInterrupt):
        run(files, checkpoint=checkpoint, on_step=stop_at(1), masks=MaskFolder(folder))
    if change == "edited":
        edited = images.read(folder / "3.png")
        edited[:5] = 0
        images.write(folder / "3.png", edited)
    elif change == "renamed":
        (folder / "3.png").rename(folder / "33.png")
    masks = None if change == "without" else MaskFolder(folder)
    with pytest.raises(MambaADError, match=r"checkpoint of other images or settings: fit without --resume$"):
        run(files, checkpoint=checkpoint, resume=True, masks=masks)


def test_a_stopped_run_with_masks_goes_on(run: Callable[..., ModelRecord], goods: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    masks = counted("masks", goods)["masks"]
    with pytest.raises(KeyboardInterrupt):
        run(checkpoint=checkpoint, on_step=stop_at(1), masks=masks)
    assert same(run(checkpoint=checkpoint, resume=True, masks=masks), run(masks=masks))


@pytest.mark.parametrize("content", [b"", b"junk" * 99, "half", "foreign"])
def test_a_damaged_checkpoint_is_one_line(
    run: Callable[..., ModelRecord], tmp_path: Path, content: bytes | str
) -> None:
    checkpoint = tmp_path / "checkpoint"
    if content == "half":
        with pytest.raises(KeyboardInterrupt):
            run(checkpoint=checkpoint, on_step=stop_at(1))
        content = checkpoint.read_bytes()[: checkpoint.stat().st_size // 2]
    if content == "foreign":
        save_file({"a": torch.zeros(1)}, checkpoint)
    else:
        assert isinstance(content, bytes)
        checkpoint.write_bytes(content)
    with pytest.raises(MambaADError, match=r"checkpoint.* --resume") as caught:
        run(checkpoint=checkpoint, resume=True)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_with_fields_of_another_version_is_one_line(
    run: Callable[..., ModelRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = tmp_path / "checkpoint"
    monkeypatch.setattr(loop, "as_dict", lambda recipe: {**asdict(recipe), "annealing": 1})
    with pytest.raises(KeyboardInterrupt):
        run(checkpoint=checkpoint, on_step=stop_at(1))
    with pytest.raises(MambaADError, match=r"of another version .*annealing.*: fit without --resume$") as caught:
        run(checkpoint=checkpoint, resume=True)
    assert "\n" not in str(caught.value)


def test_progress_shows_the_whole_work_of_folds_and_what_is_finished_is_kept(
    run: Callable[..., ModelRecord], tmp_path: Path
) -> None:
    """4 steps of the model itself, then 3 folds of 2."""
    told: list[tuple[int, int]] = []
    whole = run(folds=3, epochs=3, on_step=lambda step, steps, *_: told.append((step, steps)))
    assert told == [(step, 5 + 3 * 3) for step in range(1, 15)]
    checkpoint = tmp_path / "checkpoint"
    with pytest.raises(KeyboardInterrupt):
        run(folds=3, epochs=3, checkpoint=checkpoint, on_step=stop_at(9))
    told.clear()
    resumed = run(
        folds=3,
        epochs=3,
        checkpoint=checkpoint,
        resume=True,
        on_step=lambda step, steps, *_: told.append((step, steps)),
    )
    assert told == [(step, 14) for step in range(9, 15)]  # from the second fold on
    assert scores_of(resumed) == scores_of(whole)


def test_a_full_disk_under_a_checkpoint_is_one_line(
    run: Callable[..., ModelRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "SAVE_EVERY", -1.0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(MambaADError, match=r"^cannot write .*checkpoint: .*File too large"):
            run(checkpoint=tmp_path / "checkpoint")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert list(tmp_path.iterdir()) == [tmp_path / "goods"]
