"""Options that several commands share, and functions that parse them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from mambaad_cli.inspection.shards import Shard

DEFAULT_MODEL = Path("mambaad.safetensors")

# Groups of options in a command's help, in the order in which it first names them; without one: Options.
PHOTOS, VIDEOS, VERDICTS, MACHINE = "Photos", "Videos and cameras", "Verdicts", "This machine"


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


def parse_size(res: str, option: str = "--res") -> tuple[int, int]:
    """(height, width) of "256" or "320x192", which is width x height. option: where it was given.

    >>> parse_size("256"), parse_size("320x192")
    ((256, 256), (192, 320))
    """
    sides = res.lower().split("x")
    if len(sides) > 2 or not all(side.isascii() and side.isdecimal() for side in sides):
        raise typer.BadParameter(
            f"{res!r}: expected pixels such as 256, or 320x192 for width x height", param_hint=option
        )
    width, height = int(sides[0]), int(sides[-1])
    if min(width, height) < 32:
        raise typer.BadParameter(f"{res!r}: the model needs at least 32 pixels a side", param_hint=option)
    return height, width


def parse_min_area(regions: bool, min_area: int) -> int | None:
    """The smallest area of a region; None if no regions are wanted."""
    if min_area and not regions:
        raise typer.BadParameter("needs --regions", param_hint="--min-area")
    return min_area if regions else None


def parse_shard(text: str) -> "Shard":
    """Shard K of N.

    >>> parse_shard("3/100")
    Shard(number=3, of=100)
    """
    from mambaad_cli.inspection.shards import Shard

    number, slash, count = text.strip().partition("/")
    whole = all(part.isascii() and part.isdecimal() for part in (number, count))
    if not (slash and whole and 1 <= int(number) <= int(count)):
        raise typer.BadParameter(f"{text!r}: expected K/N with K from 1 to N, such as 3/100", param_hint="--shard")
    return Shard(int(number), int(count))


def pick_precision(precision: str) -> str:
    """auto is fp32: bf16 moves scores by more than 1 %, and that is for the user to decide."""
    return "fp32" if precision == "auto" else precision


def given(ctx: typer.Context, names: tuple[str, ...]) -> list[str]:
    """Those of the named options that were given on the command line, as they are typed."""
    sources = {name: ctx.get_parameter_source(name) for name in names}
    typed = [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]
    return [f"--{name.replace('_', '-')}" for name in typed]


Inputs = Annotated[
    list[str],  # not Path, which takes a slash out of rtsp://
    typer.Argument(
        metavar="PATHS",
        help="Folders and image files; or videos, cameras (camera:0, camera:1, …) and streams (rtsp://… or http://…).",
    ),
]
Fps = Annotated[
    float | None,
    typer.Option(
        min=0.001,
        metavar="NUMBER",
        help="Frames a second that are scored. Default: all of a video, and of a camera or stream as many as the model "
        "manages: it always takes the newest.",
        rich_help_panel=VIDEOS,
    ),
]
Frames = Annotated[
    int,
    typer.Option(
        "--frames",
        min=1,
        metavar="N",
        help="A frame is anomalous only if it and the N-1 scored frames before it are above the threshold; until then "
        "its verdict is review.",
        rich_help_panel=VIDEOS,
    ),
]
ModelFile = Annotated[
    Path,
    typer.Option(
        "--model", "-m", envvar="MAMBAAD_MODEL", metavar="FILE", help="Model file, written by fit.", dir_okay=True
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print thresholds and what they find as one JSON object.")]
Format = Annotated[
    Literal["table", "markdown", "csv", "json"],
    typer.Option(metavar="FORMAT", help="Format of the output: table, markdown, csv or json."),
]
Layout = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Layout of the dataset, if it is not recognised: mvtec, visa, …"),
]
ReportFile = Annotated[
    Path | None, typer.Option("--report", metavar="FILE", help="Also write a report for people, one HTML file.")
]
MaxFalseReject = Annotated[
    float | None,
    typer.Option(
        parser=parse_share,
        metavar="SHARE",
        help="Share of good images that may be rejected: 1%, or 0.01. Default: 4%, or the model's.",
        rich_help_panel=VERDICTS,
    ),
]
Review = Annotated[
    float | None,
    typer.Option(
        parser=parse_share,
        metavar="SHARE",
        help="Share, such as 5%, of good images that may get the verdict review or worse.",
        rich_help_panel=VERDICTS,
    ),
]
MinArea = Annotated[
    int, typer.Option(min=0, metavar="PIXELS", help="Leave out regions with fewer pixels.", rich_help_panel=VERDICTS)
]
ClassName = Annotated[
    str | None,
    typer.Option(
        "--class",
        metavar="NAME",
        help="Product class of all images, instead of the names of their folders.",
        rich_help_panel=PHOTOS,
    ),
]
Roi = Annotated[
    list[str] | None,
    typer.Option(
        metavar="REGION",
        help="Region of interest: x,y,width,height, or three or more corners 'x,y x,y x,y', in pixels or %; or a mask "
        "image, or a folder of masks named like the products. PRODUCT=REGION: of one product. May be repeated.",
        rich_help_panel=PHOTOS,
    ),
]
Ignore = Annotated[
    list[str] | None,
    typer.Option(metavar="REGION", help="Region that does not count, written as for --roi.", rich_help_panel=PHOTOS),
]
RoiDir = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Folder with a mask for each photo, of the same stem: white where it counts.",
        rich_help_panel=PHOTOS,
    ),
]
Res = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Image size to score at, instead of that of fit: 256, or 320x192.",
        rich_help_panel=PHOTOS,
    ),
]
Batch = Annotated[
    int,
    typer.Option(min=1, metavar="N", help="Images that go through the model together.", rich_help_panel=MACHINE),
]
Workers = Annotated[int, typer.Option(min=1, metavar="N", help="Threads that read images.", rich_help_panel=MACHINE)]
Device = Annotated[str, typer.Option(metavar="DEVICE", help="auto, cpu, cuda or cuda:N.", rich_help_panel=MACHINE)]
Precision = Annotated[
    Literal["auto", "fp32", "bf16"],
    typer.Option(
        metavar="TYPE",
        help="Of matrix products: auto, fp32 or bf16. bf16 is faster on CPUs with AMX and on GPUs, and changes scores "
        "by about 2 %.",
        rich_help_panel=MACHINE,
    ),
]
Runtime = Annotated[
    Literal["auto", "torch", "onnxruntime"],
    typer.Option(
        metavar="NAME",
        help="What runs the default encoder on a CPU: auto, torch or onnxruntime. auto: the compiled kernel; without "
        "it ONNX Runtime if installed.",
        rich_help_panel=MACHINE,
    ),
]
