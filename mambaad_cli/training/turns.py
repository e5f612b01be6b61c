"""Whether a product lies any way round in its photos: tried on a few good images, without labels.

If it does, turned views of some good images explain the others better than views that are only slightly moved do; then
the model learns from turned views. On eight products the ratio below is 0.77 to 0.95 for one that lies any way round,
and 0.97 to 1.06 for the seven that do not.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mambaad_cli.data.augmentation import moved
from mambaad_cli.data.images import ImageFile
from mambaad_cli.data.loading import Input, at_size
from mambaad_cli.inspection.network import Network
from mambaad_cli.model.kernels.nearest import GPU_PRODUCTS
from mambaad_cli.model.memory import patches_of, whitening_of
from mambaad_cli.training.examples import read_as_seen
from mambaad_cli.training.features import ENCODED
from mambaad_cli.training.job import Job

TRIED = 8  # images: half of them are known, half are to be explained
VIEWS = 7  # of each known image
EXPLAINED = 400  # patches of each of the others
UNUSUAL = 0.95  # quantile of an image's distances that is compared
PAYS = 0.96  # the ratio of distances below which turned views are taken
BLOCK = 512  # patches that others are compared with at a time on a CPU: their distances stay in the cache


@torch.inference_mode()
def turned_classes(job: Job, files: Sequence[ImageFile], classes: Sequence[str]) -> frozenset[str]:
    """The classes whose products lie any way round, from a few of their images each."""
    generator = torch.Generator().manual_seed(job.recipe.seed)
    network = job.fast
    network = replace(network, settings=replace(network.settings, detail=1.0))  # the decoder's size is enough for this
    turned = set()
    for name in dict.fromkeys(classes):
        paths = [file.path for file, other in zip(files, classes, strict=True) if other == name]
        some = [paths[i] for i in torch.randperm(len(paths), generator=generator)[:TRIED].tolist()]
        wanted = job.preparation.wanted(name, size=job.map_size(name))
        pictures = [image for path in some if (image := read_as_seen(path, wanted)) is not None]
        if len(pictures) >= 2 and turning_pays(network, pictures) < PAYS:
            turned.add(name)
    return frozenset(turned)


def turning_pays(network: Network, pictures: Sequence[Input]) -> float:
    """How far some images lie from turned views of the others, in units of how far from slightly moved ones."""
    known, others = pictures[: len(pictures) // 2], pictures[len(pictures) // 2 :]
    plain = _patches(network, [image.pixels for image in known])
    mean, whitening = whitening_of(plain)
    seen = [(_some(_of_interest(network, image)) - mean) @ whitening for image in others]

    def distance(turned: bool) -> float:
        pictures = [image.pixels.to(network.device) for image in known]
        views = [view for i, pixels in enumerate(pictures) for view in moved(pixels, VIEWS, seed=i, turned=turned)]
        near = (torch.cat([plain, _patches(network, views)]) - mean) @ whitening
        return float(torch.stack([_nearest(patches, near).quantile(UNUSUAL) for patches in seen]).mean())

    return distance(turned=True) / max(distance(turned=False), 1e-12)


def _nearest(patches: Tensor, known: Tensor) -> Tensor:
    """The distance of each patch (p, c) from the nearest known one (m, c): (p,)."""
    nearest = patches.new_full((len(patches),), math.inf)  # squared, less the patch's own squared length
    for block in known.split(_at_once(patches)):
        nearest = torch.minimum(nearest, torch.addmm(block.square().sum(1), patches, block.T, alpha=-2).amin(1))
    return (nearest + patches.square().sum(1)).clamp(min=0).sqrt()


def _at_once(patches: Tensor) -> int:
    """How many known patches these patches are compared with at a time: a GPU takes as many as it has room for."""
    return BLOCK if patches.device.type == "cpu" else max(BLOCK, GPU_PRODUCTS // len(patches))


def _some(patches: Tensor) -> Tensor:
    """At most EXPLAINED random ones of some patches (p, c)."""
    chosen = torch.randperm(len(patches), generator=torch.Generator().manual_seed(0))[:EXPLAINED]
    return patches[chosen.to(patches.device)]


def _of_interest(network: Network, image: Input) -> Tensor:
    """The patches (p, c) of an image that lie in its region of interest."""
    patches = patches_of(network.features(image.pixels[None].to(network.device)))[0]
    if image.inside is None:
        return patches.flatten(0, 1)
    return patches[at_size(image.inside, (patches.shape[0], patches.shape[1])).to(patches.device)]


def _patches(network: Network, pictures: Sequence[Tensor]) -> Tensor:
    """All patches (p, c) of pictures (3, H, W) of one size."""
    batches = [torch.stack(list(pictures[i : i + ENCODED])) for i in range(0, len(pictures), ENCODED)]
    return torch.cat([patches_of(network.features(batch.to(network.device))).flatten(0, 2) for batch in batches])
