"""A detector and its encoder as names and shapes of tensors, before any memory is taken for them.

A model file from elsewhere may describe a network that fills the memory of the machine. Here the network is built on
PyTorch's device "meta", where tensors have shapes and no values, and compared with what the file holds.
"""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from mambaad_cli import MambaADError
from mambaad_cli.model import DETECTORS, STRIDES
from mambaad_cli.model.detector import Detector
from mambaad_cli.model.efficientnet_lite import FACTORS
from mambaad_cli.model.encoder import Encoder, build_encoder
from mambaad_cli.model.settings import Settings


def networks_of(settings: Settings, max_parameters: int | None = None) -> tuple[Encoder, Detector]:
    """The encoder and the detector of some settings on the device "meta"; their tensors are still to be loaded.

    `load_state_dict(tensors, assign=True)` gives them tensors. A detector of more than `max_parameters` tensors is
    given up as soon as it has that many.

    Raises MambaADError for settings that describe no network, or a larger one.
    """
    if settings.detector not in DETECTORS:
        raise MambaADError(f"no detector {settings.detector!r}: choose {', '.join(DETECTORS)}")
    if settings.encoder not in FACTORS:
        import timm  # noqa: F401  # its import runs operators, some of which fail on the device "meta"
    with torch.device("meta"):
        encoder = build_encoder(settings.encoder, STRIDES[settings.detector])
        with _at_most(max_parameters):
            try:
                detector = DETECTORS[settings.detector](encoder.channels, **settings.options)
            except MambaADError:
                raise
            except Exception as error:  # of many kinds: any value may stand in a file
                reason = (str(error) or type(error).__name__).splitlines()[0]
                raise MambaADError(
                    f"no {settings.detector} can be made from the options of its settings ({reason})"
                ) from error
    return encoder, detector


def fitting_networks(settings: Settings, shapes: Mapping[str, Sequence[int]]) -> tuple[Encoder, Detector]:
    """The networks of some settings on the device "meta", if a file's tensors fit them by name and shape.

    shapes: of all tensors of the file, "encoder.…" and "detector.…"; those with other names are left out.

    Raises MambaADError for the first difference.
    """
    stored = {name: tuple(shape) for name, shape in shapes.items() if name.startswith(("encoder.", "detector."))}
    encoder, detector = networks_of(settings, sum(name.startswith("detector.") for name in stored))
    expected = {
        f"{part}.{name}": tuple(tensor.shape)
        for part, network in (("encoder", encoder), ("detector", detector))
        for name, tensor in network.state_dict().items()
    }
    for name in {**expected, **stored}:
        if stored.get(name) != expected.get(name):
            shape, wanted = stored.get(name, "missing"), expected.get(name, "none of that name")
            raise MambaADError(f"its tensors are not those of its settings: {name} is {shape}, expected {wanted}")
    return encoder, detector


@contextmanager
def _at_most(parameters: int | None) -> Iterator[None]:
    """Raises MambaADError as soon as this thread has made more than so many parameters of networks."""
    thread, made = threading.get_ident(), 0

    def count(module: nn.Module, name: str, parameter: Any) -> None:
        nonlocal made
        made += threading.get_ident() == thread
        if parameters is not None and made > parameters:
            raise MambaADError(f"its settings describe a network of more than the {parameters} tensors that it holds")

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()
