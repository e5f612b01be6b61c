"""Which files are images, and how they are found: in which order, and what of a folder is left out."""

import importlib.util
import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from natsort import natsort_keygen, ns

from mambaad_cli import MambaADError
from mambaad_cli.files import shown

HEIF_SUFFIXES = (".heic", ".heif", ".avif")
CAN_READ_HEIF = importlib.util.find_spec("pillow_heif") is not None  # the extra `heif`
_BASIC_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
EXPECTED = f"expected {', '.join(_BASIC_SUFFIXES[:-1])} or {_BASIC_SUFFIXES[-1]}"
SUFFIXES = (*_BASIC_SUFFIXES, ".jpe", ".jfif", *(HEIF_SUFFIXES if CAN_READ_HEIF else ()))
VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv")  # see data/video.py

# pictures that mambaad does not read: they are counted, so that nobody takes them for inspected
UNREAD_SUFFIXES = tuple(
    {
        *(
            ".gif",
            ".apng",
            ".jp2",
            ".j2k",
            ".jpf",
            ".jpx",
            ".j2c",
            ".jpc",
            ".jxl",
            ".jxr",
            ".wdp",
            ".hif",
            ".jps",
            ".mpo",
        ),
        *(
            ".ppm",
            ".pgm",
            ".pbm",
            ".pnm",
            ".pam",
            ".pfm",
            ".ras",
            ".sr",
            ".dib",
            ".tga",
            ".ico",
            ".pcx",
            ".psd",
            ".xcf",
        ),
        *(".raw", ".dng", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw"),
        *(".exr", ".hdr", ".pic", ".dcm", ".fits", ".svg", ".eps"),
        *HEIF_SUFFIXES,
        *VIDEO_SUFFIXES,  # a video in a folder; one that is named itself is read by the commands that inspect
    }
    - set(SUFFIXES)
)

# what operating systems, network drives and archivers add to a folder of photos, in lower case
SYSTEM_NAMES = {
    *("@eadir", "@tmp", "@sharebin", "#recycle", "#snapshot"),  # Synology
    *("@recycle", "@recently-snapshot", "@__thumb"),  # QNAP
    *("$recycle.bin", "system volume information", "thumbs.db", "ehthumbs.db", "desktop.ini"),  # Windows
    *("__macosx", "network trash folder", "temporary items"),  # macOS, also on other systems' drives
    "lost+found",  # Linux
}

_natural_parts = natsort_keygen(alg=ns.IGNORECASE)


class ImageFile(NamedTuple):
    """One image file that was asked for; whether it can be read is not known yet."""

    path: Path  # to open and to print, as the user gave it: given/sub/x.png
    relative: Path  # below the folder it was found in: sub/x.png; the name of a file that was named itself
    group: str  # the first folder below the given one: sub; '' for an image right in it or named itself
    frame: str = ""  # of a video, a camera or a stream: its name and the time in it, a.mp4#t=00:00:01.240

    @property
    def name(self) -> str:
        """As rows and messages have it."""
        return self.frame or str(self.path)


def natural_order(name: str) -> tuple[Any, str]:
    """Sort key of a file name: numbers by value, letters whatever their case; the name itself decides between equals.

    >>> sorted(["b10.png", "b02.png", "B2.png"], key=natural_order)
    ['B2.png', 'b02.png', 'b10.png']
    """
    return _natural_parts(name), name


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is left out unless the user names it: hidden, or made by the system.

    >>> [name for name in (".DS_Store", "@eaDir", "#Recycle", "nut", "#12") if is_hidden(name)]
    ['.DS_Store', '@eaDir', '#Recycle']
    """
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def unread_suffix(name: str) -> str | None:
    """The suffix of a picture of a kind that is not read, in lower case; None for any other file.

    >>> unread_suffix("IMG_0004.GIF"), unread_suffix("a.png"), unread_suffix("notes.txt")
    ('.gif', None, None)
    """
    suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122 (Path takes five times as long, 20,000 times)
    return suffix if suffix in UNREAD_SUFFIXES else None


def describe_unread(unread: "Counter[str]") -> str:
    """How many pictures were left out, and of which kinds: '' where there were none.

    >>> describe_unread(Counter({".gif": 1, ".jp2": 3}))
    '4 pictures of kinds that are not read: 3 .jp2, 1 .gif'
    """
    if not unread.total():
        return ""
    kinds = ", ".join(f"{count} {suffix}" for suffix, count in unread.most_common())
    pictures = "picture of a kind that is" if unread.total() == 1 else "pictures of kinds that are"
    heif = any(unread[suffix] for suffix in HEIF_SUFFIXES)
    install = " (pip install 'mambaad[heif]' reads .heic, .heif and .avif)" if heif else ""
    videos = any(unread[suffix] for suffix in VIDEO_SUFFIXES)
    name_it = " (score, map and watch read a video that is named itself)" if videos else ""
    return f"{unread.total()} {pictures} not read: {kinds}{install}{name_it}"


def same_name(name: str) -> str:
    """The name in the one form of Unicode that names are compared in: macOS stores `é` as `e` and an accent.

    >>> same_name("e\\u0301") == same_name("\\u00e9")
    True
    """
    return unicodedata.normalize("NFC", name)


def find(paths: Sequence[Path], unread: "Counter[str] | None" = None) -> list[ImageFile]:
    """List the image files in folders (with all their sub-folders) and those named themselves, in the order given.

    Inside a folder the order is natural: img_2 before img_10. Symbolic links are followed, loops are not; a file that
    is reached twice is listed once, where it was reached first. Hidden files and folders, and those that systems make
    (`is_hidden`), are left out, unless named. A file named itself is listed whatever it is: `read` says what is wrong
    with it.

    unread: counts the pictures of kinds that are not read, by their suffix; `describe_unread` says it in words.

    Raises MambaADError for a given folder without images, and for any folder that cannot be listed.
    """
    files: dict[str, ImageFile] = {}
    for top in paths:
        if not os.path.isdir(top):  # noqa: PTH112 (Path.is_dir raises where a folder above is closed)
            files.setdefault(os.path.realpath(top), ImageFile(top, Path(top.name), ""))
            continue
        left_out: Counter[str] = Counter()
        inside = list(_walk(top, left_out))
        if not inside:
            but = describe_unread(left_out)
            raise MambaADError(f"no images in {shown(top)}: {EXPECTED} files{but and '; it holds ' + but}")
        for real, path in inside:
            relative = path.relative_to(top)
            files.setdefault(real, ImageFile(path, relative, relative.parts[0] if len(relative.parts) > 1 else ""))
        if unread is not None:
            unread += left_out
    return list(files.values())


def _walk(top: Path, unread: "Counter[str]") -> Iterator[tuple[str, Path]]:
    """Yield (real path, path) of each image below `top`, entering each real folder once."""
    entered: set[str] = set()
    waiting = [(os.fspath(top), os.path.realpath(top), True)]
    while waiting:
        path, real, is_folder = waiting.pop()
        if not is_folder:
            yield real, Path(path)
        elif real not in entered:
            entered.add(real)
            waiting += reversed(_entries(path, real, unread))


def _entries(folder: str, real: str, unread: "Counter[str]") -> list[tuple[str, str, bool]]:
    """(path, real path, is a folder) of the visible sub-folders and images right in a folder, in natural order."""
    try:
        with os.scandir(folder) as listed:
            visible = [entry for entry in listed if not is_hidden(entry.name)]
    except OSError as error:
        raise MambaADError(f"cannot list {shown(folder)}: {error.strerror}") from error
    entries = []
    for entry in sorted(visible, key=lambda entry: natural_order(entry.name)):
        if entry.is_symlink():
            # os.path.isdir, for DirEntry.is_dir raises where a link points to itself
            target, is_folder = os.path.realpath(entry.path), os.path.isdir(entry.path)  # noqa: PTH112
        else:  # without realpath, which would take most of the time for 20,000 files
            target, is_folder = os.path.join(real, entry.name), entry.is_dir()  # noqa: PTH118
        if is_folder or entry.name.lower().endswith(SUFFIXES):
            entries.append((entry.path, target, is_folder))
        elif (suffix := unread_suffix(entry.name)) is not None:
            unread[suffix] += 1
    return entries
