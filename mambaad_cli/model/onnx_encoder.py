"""EfficientNet-lite run by ONNX Runtime, which is faster than PyTorch on a CPU: the same features but for rounding.

The graph is made in memory from the encoder's weights, and checked against PyTorch on one image before it is used.

Letters: b batch, H × W pixels, c channels, h × w positions of a stage.
"""

import importlib.util
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mambaad_cli import MambaADError
from mambaad_cli.model.efficientnet_lite import EfficientNetLite, InvertedResidual
from mambaad_cli.model.encoder import Encoder, SamePadded

PACKAGES = ("onnx", "onnxruntime")
INSTALL = "pip install 'mambaad[fast]'"
OPSET, IR_VERSION = 18, 8  # of the graph: old enough for each ONNX Runtime that is allowed
CLOSE = 1e-4  # largest difference of a feature, in units of the stage's largest value
PROBE = 96  # pixels a side of the image that both are compared on


def installed() -> bool:
    """Whether the packages are there; they are not imported."""
    return all(importlib.util.find_spec(name) is not None for name in PACKAGES)


def need_packages() -> None:
    """Raises MambaADError where the packages are missing."""
    if not installed():
        raise MambaADError(f"ONNX Runtime is not installed: {INSTALL}")


def suits(encoder: Encoder) -> bool:
    """Whether ONNX Runtime can run this encoder: an EfficientNet-lite, as the default is, on a CPU."""
    return isinstance(encoder.net, EfficientNetLite) and encoder.mean.device.type == "cpu"


def with_onnx_runtime(folded: Encoder) -> "OnnxEncoder":
    """An encoder whose batch norms are folded into its convolutions, run by ONNX Runtime.

    Raises MambaADError where the packages are missing, for another encoder than an EfficientNet-lite, and where the
    features are not the same.
    """
    need_packages()
    if not suits(folded):
        raise MambaADError("ONNX Runtime runs EfficientNet-lite, the default encoder: take --runtime torch for others")
    try:
        fast = OnnxEncoder(folded)
    except Exception as error:  # of many kinds, its own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise MambaADError(f"ONNX Runtime cannot run the encoder ({reason}): take --runtime torch") from error
    probe = torch.rand(1, 3, PROBE, PROBE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        pairs = list(zip(folded(probe), fast(probe), strict=True))
    if not all(bool((a - b).abs().max() <= CLOSE * a.abs().max()) for a, b in pairs):
        raise MambaADError("ONNX Runtime gives other features than PyTorch here: take --runtime torch")
    return fast


class OnnxEncoder(Encoder):
    """An encoder that ONNX Runtime runs; it has no weights of its own."""

    own_threads = True

    def __init__(self, folded: Encoder) -> None:
        super().__init__(nn.Identity(), folded.channels, folded.mean.flatten().tolist(), folded.std.flatten().tolist())
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        # its threads sleep as soon as they are done: otherwise they would slow down the detector, which PyTorch runs
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        graph = _Graph(folded)
        self.session = onnxruntime.InferenceSession(graph.content, options, providers=["CPUExecutionProvider"])
        self.outputs = graph.outputs

    def forward(self, images: Tensor) -> list[Tensor]:
        """(b, 3, H, W) in 0 … 1 to one (b, c, h, w) a stage, channels last in memory."""
        stages = self.session.run(self.outputs, {"images": images.float().contiguous().numpy()})
        return [torch.from_numpy(stage).contiguous(memory_format=torch.channels_last) for stage in stages]


class _Graph:
    """The layers of a folded EfficientNet-lite as the nodes of an ONNX model, in `content`."""

    def __init__(self, folded: Encoder) -> None:
        from onnx import TensorProto, helper

        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        net = folded.net
        centred = self._node("Sub", ["images", self._weight(folded.mean)])
        x = self._node("Mul", [centred, self._weight(1 / folded.std)])
        x = self._active(self._convolved(net.conv_stem, x))
        self.outputs = []
        for stage, blocks in enumerate(net.blocks):
            for block in blocks:
                x = self._block(block, x)
            if stage in net.taken:
                self.outputs.append(x)
        images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["b", 3, "h", "w"])
        shapes = [["b", channels, f"h{i}", f"w{i}"] for i, channels in enumerate(folded.channels)]
        pairs = zip(self.outputs, shapes, strict=True)
        outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in pairs]
        graph = helper.make_graph(self.nodes, "encoder", [images], outputs, self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        self.content: bytes = model.SerializeToString()

    def _block(self, block: nn.Module, x: str) -> str:
        if not isinstance(block, InvertedResidual):
            return self._convolved(block.conv_pw, self._active(self._convolved(block.conv_dw, x)))
        wide = self._active(self._convolved(block.conv_pw, x))
        wide = self._active(self._convolved(block.conv_dw, wide))
        narrow = self._convolved(block.conv_pwl, wide)
        return self._node("Add", [narrow, x]) if block.shortcut else narrow

    def _convolved(self, layer: Any, x: str) -> str:
        same = isinstance(layer, SamePadded)
        conv = layer.conv if same else layer
        padding: dict[str, Any] = {"auto_pad": "SAME_UPPER"} if same else {"pads": [*conv.padding, *conv.padding]}
        inputs = [x, self._weight(conv.weight), self._weight(conv.bias)]
        return self._node("Conv", inputs, strides=list(conv.stride), group=conv.groups, **padding)

    def _active(self, x: str) -> str:
        """ReLU6."""
        return self._node("Clip", [x, self._weight(torch.tensor(0.0)), self._weight(torch.tensor(6.0))])

    def _node(self, kind: str, inputs: Sequence[str], **choices: Any) -> str:
        from onnx import helper

        name = f"x{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], **choices))
        return name

    def _weight(self, tensor: Tensor) -> str:
        from onnx import numpy_helper

        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(tensor.detach().numpy(), name))
        return name
