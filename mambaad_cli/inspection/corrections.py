"""Verdicts that a person corrected on the page of a report: the file that `mambaad learn --corrections` takes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec

from mambaad_cli import MambaADError
from mambaad_cli.data.images import ImageFile
from mambaad_cli.files import sha256_of, shown

SCHEMA = 1  # of the file; page.js writes it
DIGITS = 16  # of the SHA-256 of a photo


class Correction(msgspec.Struct):
    """A photo whose verdict was wrong."""

    path: str
    correct: Literal["good", "bad"]
    verdict: str = ""
    product: str = ""  # that it was judged as
    digest: str = ""  # the first DIGITS of the photo's SHA-256; "": not known


class _File(msgspec.Struct):
    schema: Literal[1]
    corrections: list[Correction]


def read_corrections(path: Path) -> list[Correction]:
    """Raises MambaADError for a file that cannot be read, or holds something else."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=_File).corrections
    except OSError as error:
        raise MambaADError(f"cannot read {shown(path)}: {error.strerror}") from error
    except msgspec.MsgspecError as error:
        raise MambaADError(f"{shown(path)} holds no corrections of a report's page: {error}") from error


def photo_of(correction: Correction, file: Path) -> ImageFile:
    """The photo of a correction: its path as it was scored, from here or from the folder of the corrections.

    Raises MambaADError where there is none, and where it is another photo than the one that was judged.
    """
    for path in _places(correction, file):
        if path.is_file():
            if correction.digest and sha256_of(path)[:DIGITS] != correction.digest:
                raise MambaADError("is another photo now than the one that was judged")
            return ImageFile(path, Path(correction.path), "")
    raise MambaADError("no such file, neither from here nor from the folder of the corrections")


def _places(correction: Correction, file: Path) -> Iterator[Path]:
    yield Path(correction.path)
    yield file.parent / correction.path
