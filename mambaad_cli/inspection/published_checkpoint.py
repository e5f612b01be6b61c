"""Published MambaAD checkpoints -> our model file.

There are two key layouts for the same network (ResNet34, depths 3/4/6/3, Hilbert, 8 directions): that of the paper's
repository, and that of the released files, which names the 1×1 convolutions of the 7×7 branch `conv1b3` and `conv1a3`
and stores a `conv33` that no forward pass uses. Both store the scan orders as index lists, which we compute.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from mambaad_cli import MambaADError
from mambaad_cli.inspection.model_record import ModelRecord
from mambaad_cli.inspection.network import new_network
from mambaad_cli.inspection.weights_file import read_state_dict
from mambaad_cli.model.settings import PRESETS

UNUSED = re.compile(r"\.conv33\.|\.scans\.index_flat(_inv)?$")

# published name -> ours, applied one after the other
RENAMED = [
    (r"^net_t\.", "encoder.net."),
    (r"^mff_oce\.bn_layer\.(\d)\.downsample\.", r"detector.bottleneck.blocks.\1.shortcut."),
    (r"^mff_oce\.bn_layer\.(\d)\.(conv|bn)([123])\.", r"detector.bottleneck.blocks.\1.\3.\2."),
    (r"(blocks\.\d)\.1\.(conv|bn)\.", r"\1.reduce.\2."),
    (r"(blocks\.\d)\.2\.(conv|bn)\.", r"\1.conv.\2."),
    (r"(blocks\.\d)\.3\.(conv|bn)\.", r"\1.expand.\2."),
    (r"^mff_oce\.(conv|bn)1\.", r"detector.bottleneck.fine_down.\1."),
    (r"^mff_oce\.(conv|bn)21\.", r"detector.bottleneck.middle_in.\1."),
    (r"^mff_oce\.(conv|bn)2\.", r"detector.bottleneck.middle_down.\1."),
    (r"^mff_oce\.(conv|bn)31\.", r"detector.bottleneck.coarse_in.\1."),
    (r"^mff_oce\.(conv|bn)f\.", r"detector.bottleneck.fuse.\1."),
    (r"^(detector\.bottleneck\..*)\.conv\.(weight|bias)$", r"\1.0.\2"),
    (r"^(detector\.bottleneck\..*)\.bn\.", r"\1.1."),
    (r"^net_s\.layers_up\.(\d)\.blocks\.", r"detector.decoder.stages.\1."),
    (r"^net_s\.layers_up\.1\.upsample\.", "detector.decoder.expands.0."),
    (r"^net_s\.layers_up\.2\.upsample\.", "detector.decoder.expands.1."),
    (r"^net_s\.layers_up\.3\.upsample\.", "detector.decoder.expands.2."),
    (r"\.smm_blocks\.", ".blocks."),
    (r"\.ln_1\.", ".norm."),
    (r"\.self_attention\.x_proj_weight$", ".x_weight"),
    (r"\.self_attention\.dt_projs_(weight|bias)$", r".dt_\1"),
    (r"\.self_attention\.A_logs$", ".A_log"),
    (r"\.self_attention\.Ds$", ".D"),
    (r"\.self_attention\.conv2d\.", ".conv."),
    (r"\.self_attention\.", "."),
    (r"\.conv1b5\.0\.", ".local.0.before."),
    (r"\.conv55\.0\.", ".local.0.depthwise."),
    (r"\.conv1a5\.0\.", ".local.0.after."),
    (r"\.conv1b[37]\.0\.", ".local.1.before."),
    (r"\.conv77\.0\.", ".local.1.depthwise."),
    (r"\.conv1a[37]\.0\.", ".local.1.after."),
    (r"\.finalconv11\.", ".merge."),
]


def import_published(path: Path) -> ModelRecord:
    """The model of a published checkpoint, of either layout; it has no threshold yet.

    Raises MambaADError for a file that holds more than tensors, and for any tensor that is missing, unexpected or of
    another shape, which it names as published.
    """
    network = new_network(PRESETS["paper"])
    own = {f"encoder.{name}": tensor for name, tensor in network.encoder.state_dict().items()}
    own |= {f"detector.{name}": tensor for name, tensor in network.detector.state_dict().items()}
    published = {
        our_name(name): (name, tensor) for name, tensor in read_state_dict(path).items() if not UNUSED.search(name)
    }
    _check(path, own, published)
    for name, (_, tensor) in published.items():
        own[name].copy_(tensor.reshape(own[name].shape))
    network.detector.eval()
    return ModelRecord(network)


def our_name(published: str) -> str:
    """
    >>> our_name("net_s.layers_up.2.blocks.1.smm_blocks.0.self_attention.dt_projs_bias")
    'detector.decoder.stages.2.1.blocks.0.dt_bias'
    >>> our_name("mff_oce.bn_layer.0.bn3.running_mean")
    'detector.bottleneck.blocks.0.expand.1.running_mean'
    """
    for pattern, name in RENAMED:
        published = re.sub(pattern, name, published)
    return published


def _check(path: Path, own: Mapping[str, Tensor], found: Mapping[str, tuple[str, Tensor]]) -> None:
    """Each of our tensors must be there in its shape (1×1 kernels and k·d may be flattened), and no others."""
    constants = {"encoder.mean", "encoder.std"}
    missing = [name for name in own if name not in found and name not in constants]
    unexpected = [published for name, (published, _) in found.items() if name not in own]
    if unexpected:
        raise MambaADError(f"{path} is no MambaAD checkpoint that is known: unexpected {_some(unexpected)}")
    if missing:
        raise MambaADError(f"{path} is no whole MambaAD checkpoint: nothing for {_some(missing)}")
    for name, (published, tensor) in found.items():
        shape, expected = tuple(tensor.shape), _published_shape(name, own[name])
        if shape != expected:
            raise MambaADError(f"{path}: {published} has shape {shape}, where {expected} is expected")


def _published_shape(name: str, tensor: Tensor) -> tuple[int, ...]:
    """The published shape of one of our tensors: 1×1 convolutions for our products, k·d rows where we have (k, d)."""
    if name.endswith((".A_log", ".D")):
        return tuple(tensor.flatten(0, 1).shape)
    if re.search(r"\.(before|after|merge)\.weight$", name):
        return (*tensor.shape, 1, 1)
    return tuple(tensor.shape)


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
