"""Options that several commands share, and functions that parse them."""

from pathlib import Path
from typing import Annotated, Literal

import typer

DEFAULT_MODEL = Path("mambaad.safetensors")


def parse_share(text: str) -> float:
    """A share between 0 and 1, from a percentage or a fraction.

    >>> parse_share("1%"), parse_share("5 %"), parse_share("0.01")
    (0.01, 0.05, 0.01)
    """
    number = str(text).strip()
    try:
        share = float(number.removesuffix("%")) / (100 if number.endswith("%") else 1)
    except ValueError:
        share = 0.0
    if not 0 < share < 1:
        raise typer.BadParameter(f"{text!r}: expected a share such as 1% or 0.01")
    return share


def parse_size(res: str) -> tuple[int, int]:
    """(height, width) of "256" or "320x192", which is width x height.

    >>> parse_size("256"), parse_size("320x192")
    ((256, 256), (192, 320))
    """
    sides = res.lower().split("x")
    if len(sides) > 2 or not all(side.isascii() and side.isdecimal() for side in sides):
        raise typer.BadParameter(
            f"{res!r}: expected pixels such as 256, or 320x192 for width x height", param_hint="--res"
        )
    width, height = int(sides[0]), int(sides[-1])
    if min(width, height) < 32:
        raise typer.BadParameter(f"{res!r}: the model needs at least 32 pixels a side", param_hint="--res")
    return height, width


def parse_min_area(regions: bool, min_area: int) -> int | None:
    """The smallest area of a region; None if no regions are wanted."""
    if min_area and not regions:
        raise typer.BadParameter("needs --regions", param_hint="--min-area")
    return min_area if regions else None


def pick_precision(precision: str) -> str:
    """auto is fp32: bf16 moves scores by more than 1 %, and that is for the user to decide."""
    return "fp32" if precision == "auto" else precision


def given(ctx: typer.Context, names: tuple[str, ...]) -> list[str]:
    """Those of the named options that were given on the command line, as they are typed."""
    sources = {name: ctx.get_parameter_source(name) for name in names}
    typed = [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]
    return [f"--{name.replace('_', '-')}" for name in typed]


Paths = Annotated[list[Path], typer.Argument(help="Folders and image files.")]
ModelFile = Annotated[
    Path, typer.Option("--model", "-m", envvar="MAMBAAD_MODEL", help="Model file, written by fit.", dir_okay=True)
]
Res = Annotated[str | None, typer.Option(help="Image size to score at, instead of that of fit: 256, or 320x192.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Batch = Annotated[int, typer.Option(min=1, help="Images that go through the model together.")]
Workers = Annotated[int, typer.Option(min=1, help="Threads that read images.")]
MaxFalseReject = Annotated[
    float | None,
    typer.Option(
        parser=parse_share, metavar="SHARE", help="Share of good images that may be rejected: 1%, or 0.01. Default: 3%."
    ),
]
Review = Annotated[
    float | None,
    typer.Option(
        parser=parse_share,
        metavar="SHARE",
        help="Share, such as 5%, of good images that may get the verdict review or worse.",
    ),
]
MinArea = Annotated[int, typer.Option(min=0, metavar="PIXELS", help="Leave out regions with fewer pixels.")]
Precision = Annotated[
    Literal["auto", "fp32", "bf16"],
    typer.Option(
        help="Of matrix products. bf16 is faster on CPUs with AMX and on GPUs, and changes scores by about 2 %."
    ),
]
Runtime = Annotated[
    Literal["auto", "torch", "onnxruntime"],
    typer.Option(
        help="What runs the default encoder on a CPU. auto: the compiled kernel; without it ONNX Runtime if installed."
    ),
]
ReportFile = Annotated[
    Path | None, typer.Option("--report", metavar="FILE", help="Also write a report for people, one HTML file.")
]
ClassName = Annotated[
    str | None, typer.Option("--class", help="Product class of all images, instead of the names of their folders.")
]
Roi = Annotated[
    list[str] | None,
    typer.Option(
        metavar="REGION",
        help="Region of interest: x,y,width,height, or three or more corners 'x,y x,y x,y', in pixels or %; or a mask "
        "image, or a folder of masks named like the products. PRODUCT=REGION: of one product. May be repeated.",
    ),
]
Ignore = Annotated[list[str] | None, typer.Option(metavar="REGION", help="Region that does not count, as --roi.")]
RoiDir = Annotated[
    Path | None, typer.Option(help="Folder with a mask for each photo, of the same stem: white where it counts.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print thresholds and what they find as one JSON object.")]
Format = Annotated[Literal["table", "markdown", "csv", "json"], typer.Option(help="Format of the output.")]
Layout = Annotated[str | None, typer.Option(help="Layout of the dataset, if it is not recognised: mvtec, visa, …")]
