"""The precision of matrix products and convolutions: float32 that is float32, or bfloat16.

On NVIDIA GPUs since Ampere PyTorch computes convolutions of float32 with factors of 10 binary digits (TF32), unless it
is told not to. A model fitted on such a GPU would then differ from itself on a CPU by a thousandth.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch


def rounding(precision: str, device: str) -> AbstractContextManager[Any]:
    """A context for matrix products and convolutions on a device such as "cpu" or "cuda:0".

    fp32: factors keep all their digits, on a GPU as well; an autocast of the caller stays in force. bf16: factors are
    rounded to bfloat16; the selective scan and the map stay float32.
    """
    exact = exact_float32(device)
    if precision == "fp32":
        return exact
    contexts = ExitStack()
    contexts.enter_context(exact)
    contexts.enter_context(torch.autocast(device.partition(":")[0], torch.bfloat16))
    return contexts


def exact_float32(device: str | torch.device) -> AbstractContextManager[None]:
    """A context in which products and convolutions of float32 keep all digits of their factors on this device.

    The backward pass of what is computed inside must lie inside as well.
    """
    return _EXACT.held() if _may_round(device) else nullcontext()


def reproducible(device: str | torch.device) -> AbstractContextManager[Any]:
    """`exact_float32`, in which cuDNN uses only algorithms that give the same bits each time. For training."""
    contexts = ExitStack()
    if _may_round(device):
        contexts.enter_context(exact_float32(device))
        contexts.enter_context(_REPRODUCIBLE.held())
    return contexts


def _may_round(device: str | torch.device) -> bool:
    """Whether float32 may be less than float32 on this device."""
    return str(device).startswith("cuda")


class _Setting(NamedTuple):
    """A setting of PyTorch that holds for the whole process."""

    read: Callable[[], Any]
    write: Callable[[Any], None]
    wanted: Any  # its value while a context is open


class _Settings:
    """Settings that hold while any thread is inside `held`. The last one to leave restores what was there before."""

    def __init__(self, settings: list[_Setting]) -> None:
        self.settings = settings
        self.lock = threading.Lock()
        self.inside = 0
        self.before: list[tuple[_Setting, Any]] = []  # of the settings that were changed

    @contextmanager
    def held(self) -> Iterator[None]:
        with self.lock:
            if self.inside == 0:
                self._change()
            self.inside += 1
        try:
            yield
        finally:
            with self.lock:
                self.inside -= 1
                if self.inside == 0:
                    for setting, value in self.before:
                        setting.write(value)

    def _change(self) -> None:
        values = [(setting, _readable(setting)) for setting in self.settings]
        self.before = [(setting, value) for setting, value in values if value not in (setting.wanted, None)]
        for setting, _ in self.before:
            setting.write(setting.wanted)


def _readable(setting: _Setting) -> Any:
    """Its value; None where PyTorch refuses to tell, because the program uses the newer names of the same setting."""
    try:
        return setting.read()
    except RuntimeError:
        return None


def _attribute(owner: Any, name: str, wanted: Any) -> _Setting:
    return _Setting(lambda: getattr(owner, name), lambda value: setattr(owner, name, value), wanted)


def _without_tf32() -> list[_Setting]:
    """By the settings' first names, then by those of PyTorch 2.9: it wants both to agree."""
    backends: Any = torch.backends
    matmul, cudnn = backends.cuda.matmul, backends.cudnn
    settings = [
        _Setting(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest"),
        _attribute(cudnn, "allow_tf32", False),
    ]
    if hasattr(matmul, "fp32_precision") and hasattr(cudnn, "conv"):
        # the first name changes that of the CPU too, which therefore has to be restored
        parts = (matmul, cudnn.conv, cudnn.rnn, backends.mkldnn.matmul)
        settings += [_attribute(part, "fp32_precision", "ieee") for part in parts]
    return settings


_EXACT = _Settings(_without_tf32())
_REPRODUCIBLE = _Settings([_attribute(torch.backends.cudnn, "deterministic", True)])
