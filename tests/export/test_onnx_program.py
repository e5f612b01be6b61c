"""The program that the documentation offers for an exported model reads photos as mambaad does."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from PIL import Image

from mambaad_cli.data import images
from tests.conftest import picture
from tests.export.conftest import needs

ROOT = Path(__file__).parent.parent.parent
ORIENTATION = 274  # Exif tag


def onnx_program() -> str:
    """The only Python program in the documentation that runs an exported model."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    blocks = [block for page in pages for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)]
    (program,) = [block for block in blocks if "import onnxruntime" in block]
    return program


class RecordingSession:
    """Stands for onnxruntime.InferenceSession: it keeps the images that it is given."""

    size = (48, 40)  # height, width

    def __init__(self) -> None:
        self.images = np.empty(0)

    def get_modelmeta(self) -> SimpleNamespace:
        return SimpleNamespace(custom_metadata_map={"mambaad.json": '{"products": ["nut"], "verdicts": ["good"]}'})

    def get_inputs(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(name="image", shape=("n", *self.size, 3))]

    def get_outputs(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(name=name) for name in ("verdict", "score", "threshold", "map")]

    def run(self, names: list[str], inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        self.images = inputs["image"]
        return [np.zeros(1, int), np.ones(1), np.ones(1), np.ones((1, 6, 5))]


@pytest.fixture
def pixels_for_the_graph(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], np.ndarray]:
    """Runs the program on a photo; returns the pixels (h, w, 3) that it gives to the exported graph."""
    needs("onnxruntime")
    import onnxruntime

    session = RecordingSession()
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda path: session)

    def run(path: Path) -> np.ndarray:
        monkeypatch.setattr(sys, "argv", ["program", "model.onnx", str(path)])
        exec(compile(onnx_program(), "program", "exec"), {})
        return session.images[0]

    return run


def turned(folder: Path, suffix: str, orientation: int) -> Path:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = folder / f"turned{orientation}{suffix}"
    Image.fromarray(picture(1, 90, 120)).save(path, exif=exif, **({} if suffix == ".tif" else {"quality": 95}))
    return path


def of_16_bits(folder: Path, suffix: str, channels: int) -> Path:
    path = folder / f"sixteen{channels}{suffix}"
    levels = np.random.default_rng(0).integers(0, 65536, (90, 120, channels)).astype(np.uint16)
    cv2.imwrite(str(path), levels)
    return path


def transparent(folder: Path, suffix: str) -> Path:
    """Every opacity, and black below what is fully transparent."""
    noise = np.random.default_rng(0).integers(0, 256, (90, 120, 4), np.uint8)
    noise[:20] = 0
    path = folder / f"transparent{suffix}"
    Image.fromarray(noise).save(path, **({"lossless": True} if suffix == ".webp" else {}))
    return path


def palette(folder: Path, transparent: int | None) -> Path:
    path = folder / "palette.png"
    Image.fromarray(picture(1, 90, 120)).quantize(64).save(path, transparency=transparent)
    return path


def of_mode(folder: Path, mode: str, suffix: str) -> Path:
    path = folder / f"{mode}{suffix}"
    Image.fromarray(picture(1, 90, 120)).convert(mode).save(path)
    return path


PHOTOS: dict[str, Callable[[Path], Path]] = {
    **{
        f"{kind} of orientation {o}": lambda f, k=kind, o=o: turned(f, k, o)
        for kind in (".jpg", ".tif")
        for o in (3, 6)
    },
    **{f"16 bits, {n}": lambda f, n=n: of_16_bits(f, ".png", n) for n in (1, 3, 4)},
    "16 bits, TIFF": lambda folder: of_16_bits(folder, ".tif", 1),
    **{f"transparent {kind}": lambda f, k=kind: transparent(f, k) for kind in (".png", ".webp", ".tif")},
    "palette": lambda folder: palette(folder, None),
    "transparent palette": lambda folder: palette(folder, 3),
    "grey": lambda folder: of_mode(folder, "L", ".png"),
    "grey with opacity": lambda folder: of_mode(folder, "LA", ".png"),
    "one bit": lambda folder: of_mode(folder, "1", ".png"),
    "bitmap": lambda folder: of_mode(folder, "RGB", ".bmp"),
    "four inks": lambda folder: of_mode(folder, "CMYK", ".tif"),
}


@pytest.mark.parametrize("kind", PHOTOS)
def test_program_gives_the_graph_the_pixels_of_mambaad(
    kind: str, pixels_for_the_graph: Callable[[Path], np.ndarray], tmp_path: Path
) -> None:
    path = PHOTOS[kind](tmp_path)
    expected = images.resize(images.read(path), RecordingSession.size).permute(1, 2, 0).numpy() * 255
    assert np.abs(pixels_for_the_graph(path) - expected).max() <= 2
