"""The options of `mambaad fit` alone; those that it shares are in options.py."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from mambaad_cli.cli.options import MACHINE, PHOTOS, VERDICTS

LARGE, TRAINING, NETWORK = "Large photos and small defects", "Training", "Network"

Good = Annotated[
    Path, typer.Argument(metavar="GOOD", help="Folder of good images; its sub-folders are product classes.")
]
Preset = Annotated[
    Literal["small", "fast", "paper"],
    typer.Option(
        metavar="small|fast|paper",
        help="small: for laptops, takes minutes. fast: see --fast. paper: as published, takes hours.",
    ),
]
Fast = Annotated[
    bool,
    typer.Option("--fast", help="Fit and score faster, and find a little less: no decoder."),
]
MaxMinutes = Annotated[
    float | None,
    typer.Option(
        min=0.01,
        metavar="N",
        help="Approximate time limit for the whole fit. If it is too short to train, the memory alone is used.",
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue from the last checkpoint of a stopped run.")]
Add = Annotated[bool, typer.Option("--add", help="Teach the products to the existing model.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a model file that knows other products.")]

Res = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="One size for all products: 256, or 320x192 (width x height). Else each has its own.",
        rich_help_panel=PHOTOS,
    ),
]
Pixels = Annotated[
    int | None,
    typer.Option(
        min=64,
        metavar="N",
        help="Budget of a product's own size: as many pixels as a square of this side, in its aspect.",
        rich_help_panel=PHOTOS,
    ),
]
Letterbox = Annotated[
    bool,
    typer.Option(
        "--letterbox",
        help="Keep each image's aspect ratio; the padding does not count.",
        rich_help_panel=PHOTOS,
    ),
]
Flips = Annotated[bool, typer.Option("--flips", help="Good parts may also be mirrored.", rich_help_panel=PHOTOS)]
Suspects = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Folder for a contact sheet of the images that are least like the others.",
        rich_help_panel=PHOTOS,
    ),
]
DropSuspects = Annotated[
    str,
    typer.Option(
        metavar="N|auto",
        help="Drop the N most unusual training images, or all outliers (auto).",
        rich_help_panel=PHOTOS,
    ),
]

Folds = Annotated[
    int,
    typer.Option(
        min=0,
        metavar="N",
        help="Learn from all images; the threshold comes from this many additional, shorter trainings.",
        rich_help_panel=VERDICTS,
    ),
]
Bad = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Folder of known defects that the model learns to find, see `mambaad learn`.",
        rich_help_panel=VERDICTS,
    ),
]
Masks = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="With --bad: a folder with a mask of each defect.", rich_help_panel=VERDICTS),
]

Tiles = Annotated[
    bool,
    typer.Option(
        "--tiles",
        help="Also inspect photos in tiles, at their own resolution: for small defects.",
        rich_help_panel=LARGE,
    ),
]
TileSize = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Size of the tiles in pixels: 384 (default), or 512x256 (width x height).",
        rich_help_panel=LARGE,
    ),
]
Scale = Annotated[
    float | None,
    typer.Option(
        min=0.01,
        max=4,
        metavar="FACTOR",
        help="With --tiles: photos are scaled by this factor before tiles are cut.",
        rich_help_panel=LARGE,
    ),
]
Detail = Annotated[
    float | None,
    typer.Option(
        min=1,
        max=4,
        metavar="FACTOR",
        help="Factor by which the close view enlarges each side.",
        rich_help_panel=LARGE,
    ),
]

Epochs = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="How often each image is seen.", rich_help_panel=TRAINING),
]
Batch = Annotated[int | None, typer.Option(min=1, metavar="N", help="Images per step.", rich_help_panel=TRAINING)]
LearningRate = Annotated[
    float | None,
    typer.Option(min=1e-9, max=1e3, metavar="RATE", help="Learning rate.", rich_help_panel=TRAINING),
]
Seed = Annotated[
    int,
    typer.Option(
        min=0,
        max=2**31 - 1,
        metavar="N",
        help="The same seed on the same machine gives the same model.",
        rich_help_panel=TRAINING,
    ),
]
KeepExamples = Annotated[
    bool,
    typer.Option(
        "--examples/--no-examples",
        help="Keep some of the images in the model file, for --add and map --explain.",
        rich_help_panel=TRAINING,
    ),
]

Detector = Annotated[
    Literal["mambaad", "rd4ad", "uniad", "memory"],
    typer.Option(
        metavar="NAME",
        help="mambaad, or a baseline: rd4ad, uniad, or memory (PatchCore-style, without training).",
        rich_help_panel=NETWORK,
    ),
]
Encoder = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Any timm model with maps at strides 4, 8 and 16, or a vision transformer.",
        rich_help_panel=NETWORK,
    ),
]
EncoderWeights = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Local safetensors or pth file with its weights.", rich_help_panel=NETWORK),
]
Evidence = Annotated[
    Literal["decoder", "memory", "both"] | None,
    typer.Option(
        metavar="KIND",
        help="What finds defects: decoder (Mamba), memory (of good patches), or both (small).",
        rich_help_panel=NETWORK,
    ),
]
Scan = Annotated[
    Literal["sweep", "scan", "zorder", "zigzag", "hilbert"] | None,
    typer.Option(
        metavar="ORDER",
        help="Order in which the selective scan visits the positions: hilbert (default), sweep, scan (the "
        "boustrophedon), zorder or zigzag.",
        rich_help_panel=NETWORK,
    ),
]
Directions = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Directions of that order: 2, 4 or 8; or 6, the distinct ones of hilbert and scan.",
        rich_help_panel=NETWORK,
    ),
]
Ssm = Annotated[
    Literal["mamba", "gla"] | None,
    typer.Option(
        "--ssm",
        metavar="NAME",
        help="Recurrence: mamba, or gla (linear attention), faster without compiled kernels.",
        rich_help_panel=NETWORK,
    ),
]
LocalBranches = Annotated[
    bool | None,
    typer.Option(help="Use the convolutions beside the selective scans. Default: yes.", rich_help_panel=NETWORK),
]

CacheDtype = Annotated[
    Literal["auto", "fp16", "bf16", "fp32"],
    typer.Option(
        metavar="TYPE",
        help="Type of cached features: fp32, fp16 or bf16; auto is fp32, and fp16 beyond half a gigabyte.",
        rich_help_panel=MACHINE,
    ),
]
CacheMemory = Annotated[
    float,
    typer.Option(
        min=0,
        metavar="GB",
        help="Features kept in memory; larger ones go to a file in the temporary folder.",
        rich_help_panel=MACHINE,
    ),
]
CheckpointActivations = Annotated[
    bool,
    typer.Option("--checkpoint-activations", help="Train in less memory, but slower.", rich_help_panel=MACHINE),
]
