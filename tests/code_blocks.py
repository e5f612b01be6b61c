"""The code blocks of the README and the documentation, and the commands that are named in their text.

A block whose language is bash or python is run by a test, unless a comment on the line before it says why not,
`<!-- not run: a fit takes minutes -->`, or which other test does, `<!-- run by tests/export/test_export.py -->`. A
block after `<!-- output: below -->` must print what the next block of text shows.
"""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(
    r"(?:^<!-- (?P<remark>[^\n]*) -->\n)?^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)
SEPARATORS = {"&&", "||", "|", ";", ">", "2>", "&"}


class Block(NamedTuple):
    """A fenced block of a page."""

    page: str  # relative to the root
    line: int
    language: str
    remark: str  # the comment before it
    code: str

    @property
    def name(self) -> str:
        """Of a test's parameter."""
        return f"{self.page}:{self.line}"

    @property
    def runs(self) -> bool:
        """Whether it is run here."""
        return not self.remark.startswith(("not run: ", "run by "))


def blocks(language: str) -> list[Block]:
    """All blocks of this language, page by page."""
    return [block for page in PAGES for block in blocks_of(page) if block.language == language]


def blocks_of(page: Path) -> Iterator[Block]:
    text = page.read_text()
    for match in FENCE.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        remark = match["remark"] or ""
        yield Block(str(page.relative_to(ROOT)), line, match["language"], remark, match["code"])


def commands(code: str) -> list[list[str]]:
    """The commands of a shell block, each as its words.

    >>> commands("mambaad fit ./good/ && mambaad score --csv > rows.csv  # all")
    [['mambaad', 'fit', './good/'], ['mambaad', 'score', '--csv'], ['rows.csv']]
    """
    found: list[list[str]] = []
    for line in code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        rest = [[]]
        for word in words:
            if word in SEPARATORS:
                rest.append([])
            else:
                rest[-1].append(word)
        found += [command for command in rest if command]
    return found


def inline_code() -> Iterator[tuple[str, str]]:
    """(page, code) of each span of code in running text."""
    for page in PAGES:
        prose = FENCE.sub("", page.read_text())
        for code in re.findall(r"`([^`]+)`", prose):
            yield str(page.relative_to(ROOT)), " ".join(code.split()).replace(r"\|", "|")
