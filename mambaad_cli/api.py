"""The Python API: load or fit a model, then let it predict. The commands use it as well."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal

from mambaad_cli import MambaADError, distributed
from mambaad_cli.inspection import exported_model, model_file, runtimes
from mambaad_cli.inspection.fitted_model import FittedModel
from mambaad_cli.training.progress import Progress

RUNTIMES = ("auto", "torch", "onnxruntime")  # of the default encoder on a CPU


def load(path: str | Path = "mambaad.safetensors", device: str = "auto", runtime: str = "auto") -> FittedModel:
    """Read a model file, or one that was exported, ready to predict.

    device: auto, cpu, cuda or cuda:N; auto takes a GPU if there is one.
    runtime: torch, onnxruntime or auto: what runs the default encoder on a CPU, see FittedModel.for_inference.

    Raises MambaADError for a file that is missing, damaged or made by a newer version, and for a device that does
    not exist, or a runtime.
    """
    if runtime not in RUNTIMES:
        raise MambaADError(f"no runtime {runtime!r}: choose {', '.join(RUNTIMES)}")
    if Path(path).suffix.lower() in runtimes.SUFFIXES:
        return exported_model.load(Path(path)).to("cpu" if device == "auto" else device)
    model = model_file.load(Path(path)).to(distributed.pick_device(device))
    model.encoder_runtime = runtime
    return model


def fit(
    folder: str | Path,
    preset: Literal["small", "paper", "memory", "rd4ad", "uniad"] = "small",
    size: tuple[int, int] | None = None,
    letterbox: bool = False,
    device: str = "auto",
    progress: Progress | None = None,
    **choices: Any,
) -> FittedModel:
    """Train one model on a folder of good images, whose sub-folders are product classes, as `mambaad fit` does.

    size: (height, width) in pixels that all images are scaled to; by default each product has a size of its own.
    letterbox: keep each image's aspect ratio; otherwise images are stretched to that size.
    choices: fields of Recipe, such as max_minutes=2, epochs=20, folds=4, flips=True or seed=1.

    Raises MambaADError for a folder without enough good images, and for an unknown choice.
    """
    from mambaad_cli.training import fit as training  # late: it takes a second, which scoring does not need
    from mambaad_cli.training.good_images import good_images
    from mambaad_cli.training.recipe import Recipe, RunOptions
    from mambaad_cli.training.recipe import preset as preset_of

    settings, recipe = preset_of(preset)
    known = {one.name for one in fields(Recipe)}
    if unknown := sorted(set(choices) - known):
        raise MambaADError(f"a recipe has no {', '.join(unknown)}: choose from {', '.join(sorted(known))}")
    recipe = recipe.showing(choices.get("evidence", recipe.evidence))
    files, classes = good_images(Path(folder))
    if size is not None or letterbox:
        settings = replace(settings, size=size or (256, 256), letterbox=letterbox, own_aspect=False, detail=1.0)
    run = RunOptions(device=distributed.pick_device(device), runtime="auto")
    return training.fit(files, classes, settings, replace(recipe, **choices), run, progress)
