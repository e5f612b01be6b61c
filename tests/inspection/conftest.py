"""Models with everything in them, taught in a moment and without a training."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from mambaad_cli.data import loading
from mambaad_cli.data.loading import Input
from mambaad_cli.inspection import recognition
from mambaad_cli.inspection.lessons import KEPT, Hardest, Lesson
from mambaad_cli.inspection.model_record import ModelRecord
from mambaad_cli.inspection.network import Network, compared
from mambaad_cli.inspection.preparation import Preparation
from mambaad_cli.inspection.product import Learnt, Product, Products, ScoredDefect
from mambaad_cli.inspection.sources import UNITS, Sources
from mambaad_cli.inspection.teaching import taught
from mambaad_cli.inspection.tiles import Tiles
from mambaad_cli.inspection.torch_scorer import TorchScorer
from mambaad_cli.model.anomaly_map import residual_statistics
from mambaad_cli.model.fusion import Fusion, witness_of
from mambaad_cli.model.known_defects import hardest_patches
from mambaad_cli.model.memory import distances, expected_distances, memory_of
from tests.conftest import calibrated, picture, tiny_network

DETAILED = {"detail": 2.0, "looks": 2, "local_contrast": 0.4, "memory_sigma": 2.5}  # fields of Settings
TILED = {"tiles": (80, 80)}
FIRST_SEED = {"nut": 0, "bolt": 100}  # of pictures of good parts


def photos_of(name: str, count: int, start: int = 0) -> list[np.ndarray]:
    """Pictures of good parts; each product has its own pattern and shape."""
    height, width = {"nut": (80, 96), "bolt": (112, 64)}.get(name, (72, 72))
    first = FIRST_SEED.get(name, 200) + start
    return [picture(seed, height, width) for seed in range(first, first + count)]


def prepared(preparation: Preparation, name: str, photos: list[np.ndarray]) -> list[Input]:
    """Photos as fit prepares them for a product; their pictures are kept."""
    size, region = preparation.input_size(name), preparation.products[name].region
    letterbox = preparation.settings.letterbox
    return [loading.prepared(photo, size, letterbox, keep=True, region=region) for photo in photos]


@torch.inference_mode()
def learnt_from(network: Network, product: Product, images: list[Input]) -> Learnt:
    """What these good images of a product teach: every kind of evidence that the network's settings allow."""
    pixels = torch.stack([image.pixels for image in images])
    features, size = network.features(pixels), network.map_size((pixels.shape[2], pixels.shape[3]))
    memories, places = [], []
    for patches in network.patches(features):
        memory, chosen = memory_of(patches.flatten(0, 2), 60, 0)
        memories.append(memory._replace(expected=expected_distances(distances(memory, patches))))
        places.append(_places(chosen, patches.shape[1:3]))
    sources = Sources(tuple(f"good_{i}.png" for i in range(len(images))), tuple(places), _pictures(images))
    learnt = Learnt(tuple(residual_statistics(lambda: [network.residuals(features)])), tuple(memories))
    evidence = network.evidence(features, size, learnt)
    assert evidence.decoder is not None
    assert evidence.memory is not None
    fusion = Fusion(witness_of(evidence.decoder, 0.5), witness_of(evidence.memory, 0.5))
    tiles = tiles_from(network, images) if network.settings.tiles else None
    return replace(learnt, fusion=fusion, region=product.region, tiles=tiles, sources=sources)


def _places(chosen: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Where patches lie that were chosen from those of all images, (m, 3)."""
    images, rest = chosen // (grid[0] * grid[1]), chosen % (grid[0] * grid[1])
    x, y = (rest % grid[1] + 0.5) / grid[1], (rest // grid[1] + 0.5) / grid[0]
    return torch.stack([images, (UNITS * x).round(), (UNITS * y).round()], 1).int()


def _pictures(images: list[Input]) -> tuple[torch.Tensor, ...]:
    """All but the last one are kept."""
    kept = [
        torch.from_numpy(cv2.imencode(".webp", image.picture)[1].ravel())
        for image in images[:-1]
        if image.picture is not None
    ]
    return (*kept, torch.empty(0, dtype=torch.uint8))


@torch.inference_mode()
def hardest_of(network: Network, product: Product, images: list[Input]) -> Hardest:
    """The most unusual patches of these good images."""
    rows, scores = [], []
    for image in images:
        features = network.features(image.pixels[None])
        size = network.map_size((image.pixels.shape[1], image.pixels.shape[2]))
        inside = None if image.inside is None else loading.at_size(image.inside[None], size)
        anomaly_map = network.unusual_maps(features, size, product.learnt, inside)[0]
        scores.append(float(anomaly_map.max()))
        rows.append(hardest_patches(anomaly_map, [view[0] for view in network.patches(features)], KEPT))
    return Hardest(tuple(torch.stack(view) for view in zip(*rows, strict=True)), tuple(scores))


def tiles_from(network: Network, images: list[Input]) -> Tiles:
    """What good tiles are like, from the upper left corner of each photo."""
    height, width = network.tile_size
    corners = np.stack([image.source[:height, :width] for image in images if image.source is not None])
    patches = network.tile_patches(torch.from_numpy(corners).permute(0, 3, 1, 2).float() / 255)
    memory, _ = memory_of(patches.flatten(0, 2), 60, 0)
    memory = memory._replace(expected=distances(memory, patches).mean().view(1, 1))
    unusual = compared(memory, patches)
    return Tiles(memory, torch.ones(3, 4), Fusion(witness_of(unusual, 0.5), witness_of(unusual, 0.5)))


def taught_record(network: Network, products: Products) -> ModelRecord:
    """A model of some products, each learnt from eight images and calibrated by six others."""
    record = ModelRecord(network, products)
    preparation = Preparation(network.settings, products)
    signatures, names = [], []
    for name, product in products.items():
        images = prepared(preparation, name, photos_of(name, 8))
        record = record.with_products(replace(product, images=8, learnt=learnt_from(network, product, images)))
        for image in images:
            signatures.append(network.signature(network.coarse_features(image.pixels[None])))
            names.append(name)
    recogniser, farthest = recognition.learn(torch.cat(signatures), names, [])
    for name in products:
        judgements = TorchScorer(record).judge(prepared(preparation, name, photos_of(name, 6, start=20)), [name] * 6)
        scores = [float(judgement.anomaly_map.max()) for judgement in judgements]
        defects = (ScoredDefect("spot", 4.0, 2 * max(scores)),)
        product = calibrated(record.products[name], scores, farthest=farthest[name], simulated=defects)
        images = prepared(preparation, name, photos_of(name, 6, start=20))
        product = replace(product, learnt=replace(product.learnt, hardest=hardest_of(network, product, images)))
        record = record.with_products(replace(product, photo_shape=photos_of(name, 1)[0].shape[:2]))
    return replace(record, recogniser=recogniser if len(products) > 1 else None)


def two_products(region: np.ndarray | None = None, **settings: Any) -> ModelRecord:
    """A taught model of nut and bolt, of different sizes; nut has this region of interest."""
    nut, bolt = Product("nut", (64, 80), region=region), Product("bolt", (80, 48))
    return taught_record(tiny_network(**settings), {"nut": nut, "bolt": bolt})


@pytest.fixture(scope="module")
def rich_record() -> ModelRecord:
    """A model with all that a file can hold: two views, statistics, tiles, a region, a recogniser, verdicts."""
    torch.manual_seed(0)
    region = np.zeros((80, 96), bool)
    region[8:72, 16:88] = True
    record = two_products(region, **DETAILED, **TILED)
    nut = record.products["nut"]
    assert nut.learnt.hardest is not None
    lessons = [
        Lesson(f"{i}.png", str(i), i > 2, tuple(view[i] for view in nut.learnt.hardest.patches), 1.0, "spot", "2026")
        for i in range(4)
    ]
    whole = taught(replace(nut, learnt=replace(nut.learnt, tiles=None)), lessons, 0.5).product
    return record.with_products(replace(whole, learnt=replace(whole.learnt, tiles=nut.learnt.tiles)))


@pytest.fixture
def rich_file(rich_record: ModelRecord, tmp_path: Path) -> Path:
    from mambaad_cli.inspection import store

    store.save(rich_record, tmp_path / "rich.safetensors")
    return tmp_path / "rich.safetensors"
