"""The labelled sample, and the words that datasets use for a good one."""

from pathlib import Path
from typing import NamedTuple

GOOD_FOLDERS = {"good", "ok", "normal"}
GOOD_LABELS = GOOD_FOLDERS | {"0", "0.0", "false"}  # "0.0": what pandas writes for a column with gaps


class Sample(NamedTuple):
    """One labelled image.

    >>> Sample(Path("000.png"), "bottle", "test", "scratch", None).anomalous
    True
    """

    path: Path
    class_name: str
    split: str  # train | test
    defect: str  # good, or the kind of defect
    mask: Path | None  # a file, or a folder with several masks to be united

    @property
    def anomalous(self) -> bool:
        return self.defect != "good"


def defect_named(label: str) -> str:
    """The kind of defect that a folder or a list names: `good` for each of the field's words for it.

    >>> defect_named("OK"), defect_named("scratch")
    ('good', 'scratch')
    """
    return "good" if label.lower() in GOOD_FOLDERS else label
