"""README and documentation: commands and options exist as they are written, and each block that can be run is run."""

import importlib.util
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.main import get_command
from typer.testing import CliRunner

import mambaad_cli
from mambaad_cli.cli import app
from mambaad_cli.data import datasets, images
from tests.code_blocks import PAGES, ROOT, Block, blocks, blocks_of, commands, inline_code
from tests.conftest import picture

COMMANDS = get_command(app).commands
OF_THE_APPLICATION = {"--config": 1, "--quiet": 0, "--verbose": 0}  # options before the command: how many values
OTHER_OPTIONS = {"--index-url", "--extra-index-url"}
MAY_END_WITH_3 = ("monitor", "--fail-on-anomaly")
SHELL_BLOCKS = blocks("bash")
GOOD_PHOTOS = 12


# ---- parsed, without running it ----


def parse(words: list[str]) -> None:
    """Parse the words after `mambaad` as the command would; raises its usage error."""
    name, *arguments = words
    if name in ("--version", "--install-completion"):
        return
    if name in OF_THE_APPLICATION:
        parse(arguments[OF_THE_APPLICATION[name] :])
        return
    COMMANDS[name].make_context(name, arguments)


def parse_partly(words: list[str]) -> None:
    """The same for a command that is named in running text, where what it needs may be left out."""
    name, *arguments = words
    try:
        parse(words)
    except typer.BadParameter:
        needed = [p for p in COMMANDS[name].params if p.required]
        options = [p.opts[0] for p in needed if p.param_type_name == "option" and not set(p.opts) & set(arguments)]
        takes_argument = any(p.param_type_name == "argument" for p in needed)
        parse([name, *(["x"] if takes_argument else []), *arguments, *(word for o in options for word in (o, "x"))])


def mambaad_commands(code: str) -> list[list[str]]:
    """The words after `mambaad` of all commands of a shell block, under torchrun and ssh too."""
    found = []
    for words in commands(code):
        if "mambaad" in words[:3]:
            found.append(words[words.index("mambaad") + 1 :])
        elif words[0] == "torchrun" and "mambaad_cli" in words:
            found.append(words[words.index("mambaad_cli") + 1 :])
    return [words for words in found if words]


@pytest.mark.parametrize("block", SHELL_BLOCKS, ids=lambda block: block.name)
def test_commands_of_a_block_are_understood(block: Block) -> None:
    for words in mambaad_commands(block.code):
        parse(words)


def spelt_out(code: str) -> list[str] | None:
    """The words of a command that is named in running text: `mambaad fit x`, or `fit --flips`; else None."""
    if not re.match(rf"(mambaad )?({'|'.join(COMMANDS)})\b( |$)", code):
        return None
    if not code.startswith("mambaad ") and " -" not in code:
        return None
    words = shlex.split(code.removeprefix("mambaad "))
    return words[: words.index("|")] if "|" in words else words


NAMED = sorted({code for _, code in inline_code() if spelt_out(code)})


@pytest.mark.parametrize("code", NAMED)
def test_commands_in_running_text_are_understood(code: str) -> None:
    words = [word for word in spelt_out(code) or [] if word != "…"]
    if words[-1].startswith("--"):  # named without its value
        option = words.pop()
        assert option in {name for p in COMMANDS[words[0]].params for name in (*p.opts, *p.secondary_opts)}
    parse_partly(words)


def test_options_in_running_text_exist() -> None:
    options = {name for command in COMMANDS.values() for p in command.params for name in (*p.opts, *p.secondary_opts)}
    programs = "".join(path.read_text() for path in Path(mambaad_cli.__file__).parent.rglob("*.py"))
    options |= set(re.findall(r'add_argument\(\s*"(--[\w-]+)"', programs)) | {"--version", "--help"} | OTHER_OPTIONS
    options |= {"--install-completion"} | set(OF_THE_APPLICATION)
    for page, code in inline_code():
        for word in re.findall(r"(?<![\w-])--[a-z][\w-]*", code):
            if not re.match(r"(pip|python|g\+\+|torchrun|chromium|sbatch)", code):
                assert word in options, f"{page}: {code}"


def programs_named() -> set[tuple[str, tuple[str, ...]]]:
    """(module, its options) of all `python -m mambaad_cli…` in blocks and text."""
    lines = [" ".join(words) for block in SHELL_BLOCKS for words in commands(block.code)]
    lines += [code for _, code in inline_code()]
    found = set()
    for line in lines:
        if match := re.match(r"python -m (mambaad_cli\.[\w.]+|tests\.[\w.]+)(.*)", line):
            found.add((match[1], tuple(re.findall(r"--[\w-]+", match[2]))))
    return found


@pytest.mark.parametrize(("module", "options"), sorted(programs_named()))
def test_programs_that_measure_exist_with_their_options(module: str, options: tuple[str, ...]) -> None:
    source = ROOT.joinpath(*module.split(".")).with_suffix(".py").read_text()
    assert '__name__ == "__main__"' in source
    for option in options:
        assert f'"{option}"' in source


# ---- run ----


@pytest.fixture(scope="session")
def workshop(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small model, and the folders of photos and files that the pages name."""
    folder = tmp_path_factory.mktemp("workshop")
    for name, first in (("good", 0), ("more_good", 100), ("incoming", 200), ("wrongly_rejected", 300)):
        for i in range(GOOD_PHOTOS if name.endswith("good") else 3):
            images.write(folder / name / f"{i}.png", picture(first + i))
    for name in ("missed", "known_defects"):
        for i in range(3):
            broken = picture(400 + i)
            broken[20:40, 30:50] = 255
            images.write(folder / name / f"broken_{i}.png", broken)
            mask = 0 * broken
            mask[20:40, 30:50] = 255
            images.write(folder / "masks" / f"broken_{i}.png", mask)
    shutil.copy(folder / "missed" / "broken_0.png", folder / "incoming" / "broken_01.jpg")
    (folder / "tests").symlink_to(ROOT / "tests")
    model = mambaad_cli.fit(
        folder / "good", preset="memory", encoder="test_resnet", encoder_weights=weights, size=(64, 64)
    )
    model.save(folder / "mambaad.safetensors")
    result = CliRunner().invoke(
        app,
        ["score", f"{folder}/incoming", "-m", f"{folder}/mambaad.safetensors", "--json", "-o", f"{folder}/rows.jsonl"],
    )
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def at_work(workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a copy of the workshop."""
    shutil.copytree(workshop, tmp_path / "work", symlinks=True)
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def run(words: list[str]) -> str:
    """Run a command in this process; returns what it prints on stdout."""
    result = CliRunner().invoke(app, words, env={"COLUMNS": "100"}, prog_name="mambaad")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    allowed = (0, 3) if any(word in words for word in MAY_END_WITH_3) else (0,)
    assert result.exit_code in allowed, f"mambaad {shlex.join(words)}: {result.output}"
    return result.stdout


def needs(block: Block) -> None:
    """Skip where a package of an extra is missing."""
    if "--plot" in block.code:
        pytest.importorskip("matplotlib")


@pytest.mark.parametrize("block", [block for block in SHELL_BLOCKS if block.runs], ids=lambda block: block.name)
def test_blocks_run(block: Block, at_work: Path) -> None:
    needs(block)
    if "mambaad watch" in block.code:  # it begins a file of its own
        (at_work / "rows.jsonl").unlink()
    assert all(words[0] == "mambaad" for words in commands(block.code)), "say why it is not run: see code_blocks"
    printed = "".join(run(words) for words in mambaad_commands(block.code))
    if block.remark == "output: below":
        shown = next(other for other in blocks_of(ROOT / block.page) if other.line > block.line)
        assert shown.language == "text"
        lines = [line.rstrip() for line in printed.splitlines()]
        expected = shown.code.rstrip().splitlines()
        assert lines[: len(expected)] == expected


@pytest.mark.parametrize("block", [b for b in blocks("python") if b.runs], ids=lambda block: block.name)
def test_python_runs(block: Block, at_work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {"image": "incoming/0.png", "paths": ["incoming"]}
    exec(block.code, names)
    assert re.search(r"\b(good|review|anomalous)\b", capsys.readouterr().out)
    pictures = [value for value in names.values() if isinstance(value, np.ndarray)]
    assert pictures or "explain" in block.page  # nothing is explained of a photo without regions
    for made in pictures:
        assert (made.shape[2], made.dtype) == (3, np.uint8)


def test_a_block_that_is_not_run_says_why_or_where() -> None:
    for page in PAGES:
        for block in blocks_of(page):
            where = block.remark.removeprefix("run by ")
            if block.language == "cpp":
                assert not block.runs, block.name
            if block.remark.startswith("run by "):
                assert (ROOT / where).is_file(), block.name
            elif block.remark:
                assert block.remark == "output: below" or block.remark.startswith("not run: "), block.name
            if not block.language:
                assert not re.search(r"^(\$ )?(mambaad|pip|python) ", block.code, re.MULTILINE), block.name


def test_folders_of_lookout_for_vision_are_read_as_they_are(tmp_path: Path) -> None:
    """As docs/how-to/migrate.md says: fit learns from train/normal, eval measures on test."""
    for name in ("train/normal", "train/anomaly", "test/normal", "test/anomaly"):
        images.write(tmp_path / "project" / name / "0.png", picture())
    samples = datasets.load(tmp_path / "project")
    assert [sample.path.parent.name for sample in datasets.training_images(samples)] == ["normal"]
    tested = {sample.path.parent.name: sample.anomalous for sample in samples if sample.split == "test"}
    assert tested == {"normal": False, "anomaly": True}


# ---- pages ----


def links() -> list[tuple[Path, str]]:
    """(page, target) of each link to a file."""
    found = [(page, target) for page in PAGES for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text())]
    return [(page, target) for page, target in found if not target.startswith(("http://", "https://"))]


def headings(page: Path) -> set[str]:
    """The anchors of a page, as MkDocs and GitHub name them."""
    titles = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def test_links_lead_to_files_and_headings() -> None:
    for page, target in links():
        name, _, anchor = target.partition("#")
        leads_to = (page.parent / name).resolve() if name else page
        assert leads_to.is_file(), f"{page}: {target}"
        if anchor:
            assert anchor in headings(leads_to), f"{page}: {target}"


def test_every_page_is_in_the_contents() -> None:
    contents = (ROOT / "docs" / "mkdocs.yml").read_text()
    for page in PAGES[1:]:
        assert re.search(rf"^ +- .*\b{page.relative_to(ROOT / 'docs')}$", contents, re.MULTILINE), page


def test_readme_is_short_and_names_every_command() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.encode()) <= 12_288
    assert text.count("\n") <= 250
    table = set(re.findall(r"^\|[^|]*\| `mambaad ([\w-]+)", text, re.MULTILINE))
    assert table == set(COMMANDS)


def test_first_screen_shows_a_picture() -> None:
    text = (ROOT / "README.md").read_text()
    picture = re.search(r"!\[[^\]]+\]\(([^)]+)\)", text)
    assert picture is not None
    assert text[: picture.start()].count("\n") < 25
    assert (ROOT / picture.group(1)).is_file()


@pytest.fixture
def written_page() -> Callable[[], str]:
    """The function of docs/commands.py that writes the reference of commands."""
    spec = importlib.util.spec_from_file_location("commands", ROOT / "docs" / "commands.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page: Callable[[], str] = module.page
    return page


def test_the_reference_of_commands_is_current(written_page: Callable[[], str]) -> None:
    current = (ROOT / "docs" / "reference" / "commands.md").read_text() == written_page()
    assert current, "run: python docs/commands.py"


def test_the_reference_of_commands_names_every_option(written_page: Callable[[], str]) -> None:
    """Compared with what Typer itself parses."""
    page = written_page()
    for name, command in COMMANDS.items():
        section = page.split(f"\n## {name}\n")[1].split("\n## ")[0]
        for parameter in command.params:
            if parameter.param_type_name == "option" and parameter.name != "help" and not parameter.hidden:
                for spelling in (*parameter.opts, *parameter.secondary_opts):
                    assert f"`{spelling}`" in section, f"{name} {spelling}"
