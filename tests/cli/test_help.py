"""The pages of --help fit a terminal of 80 characters, and say what every option takes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import typer

import mambaad_cli
from mambaad_cli.cli import app, help_page
from mambaad_cli.cli.output import no_progress, note, speech
from tests.cli.test_commands import complaint, run

GROUP: Any = typer.main.get_command(app)
COMMANDS = list(GROUP.commands)
ROOT = Path(mambaad_cli.__file__).parent.parent


def options(name: str) -> list[Any]:
    return [one for one in GROUP.commands[name].params if one.param_type_name == "option"]


def choices(hint: Any) -> list[str]:
    """What a Literal allows, within `| None` as well."""
    if get_origin(hint) is Literal:
        return list(get_args(hint))
    return [one for part in get_args(hint) for one in choices(part)]


@pytest.mark.parametrize("name", ["", *COMMANDS])
@pytest.mark.parametrize("width", [80, 120])
def test_no_line_of_a_help_is_wider_than_the_terminal(name: str, width: int) -> None:
    shown = run(*name.split(), "--help", COLUMNS=str(width)).stdout
    wide = [line.rstrip() for line in shown.splitlines() if len(line.rstrip()) > width]
    assert [line for line in wide if not line.startswith(" mambaad ")] == []  # examples stay whole, to be copied
    for one in options(name) if name else ():
        assert f"│ {help_page.typed(one)} " in shown  # nothing in the first column is cut


@pytest.mark.parametrize("name", COMMANDS)
def test_a_help_leaves_most_of_a_narrow_terminal_to_the_text(name: str) -> None:
    assert max(len(help_page.typed(one)) for one in options(name)) <= 26


def test_most_options_of_fit_take_one_line_at_120_characters() -> None:
    lines = [line[2:-2] for line in run("fit", "--help", COLUMNS="120").stdout.splitlines() if line.startswith("│")]
    first = [line for line in lines if line.startswith("--")]
    assert len(first) >= 40
    assert len(first) / len(lines) > 0.8


@pytest.mark.parametrize("name", COMMANDS)
def test_an_option_that_takes_a_value_says_which(name: str) -> None:
    hints = get_type_hints(GROUP.commands[name].callback)
    for one in options(name):
        if not one.is_flag:
            assert one.metavar, one.name
        said = f"{one.metavar} {one.help}"
        assert [choice for choice in choices(hints.get(one.name)) if choice not in said] == [], one.name


def test_the_commands_are_in_groups_and_so_are_the_options_of_fit() -> None:
    shown = run("--help").stdout
    titles = ["Inspect", "On the line", "Prove", "Research", "This machine"]
    places = [shown.index(f"─ {title} ─") for title in titles]
    assert places == sorted(places)
    assert all(command.rich_help_panel in titles for command in GROUP.commands.values())
    fit = run("fit", "--help").stdout
    for title in ("Photos", "Verdicts", "Large photos and small defects", "Training", "Network", "This machine"):
        assert f"─ {title} ─" in fit


def test_an_option_with_two_names_is_shown_once_and_with_its_default() -> None:
    examples = next(one for one in options("fit") if one.name == "keep_examples")
    assert help_page.typed(examples) == "--[no-]examples"
    assert help_page.explained(examples).plain.endswith("[default: yes]")
    scale = next(one for one in options("fit") if one.name == "scale")
    assert help_page.explained(scale).plain.endswith("[0.01–4]")


def test_the_line_of_usage_names_the_arguments_as_the_help_does() -> None:
    assert "Usage: mambaad calibrate [OPTIONS] MODEL [GOOD]" in run("calibrate", "--help").stdout
    assert "Usage: mambaad eval [OPTIONS] [MODEL] DATASET" in run("eval", "--help").stdout
    assert "Usage: mambaad score [OPTIONS] PATHS..." in run("score").stderr


def test_no_color_leaves_out_every_colour() -> None:
    program = "from mambaad_cli.__main__ import main; main()"
    for args in (["fit", "--help"], ["fit", "--epoch", "x"]):
        forced = {"PYTHONPATH": str(ROOT), "FORCE_COLOR": "1", "TERM": "xterm-256color"}
        shown = {}
        for colour in ({}, {"NO_COLOR": "1"}):
            env = os.environ | forced | colour
            done = subprocess.run([sys.executable, "-c", program, *args], env=env, capture_output=True, text=True)
            shown[bool(colour)] = done.stdout + done.stderr
        assert any(f"\x1b[{bold}{colour}m" in shown[False] for bold in ("", "1;") for colour in (31, 36))
        assert not any(f"\x1b[{bold}{colour}m" in shown[True] for bold in ("", "1;") for colour in range(30, 38))


def test_versions_for_a_report_of_a_fault_are_one_json_object() -> None:
    found = json.loads(run("--version", "--json").stdout)
    assert found["mambaad"] == mambaad_cli.__version__
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert set(found) == {"mambaad", "python", "torch", "platform", "compiled_kernels", "instruction_set"}
    assert found["compiled_kernels"] is (found["instruction_set"] is not None)
    assert run("--json").exit_code == 2
    assert "goes with --version" in run("--json", "doctor").stderr


def test_quiet_leaves_out_notes_and_progress_but_no_error(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    assert "no model" in complaint(run("--quiet", "score", gone))
    assert speech.quiet
    assert no_progress() is True
    note("wrote a sheet")
    assert capsys.readouterr().err == ""
    assert "no model" in complaint(run("score", gone))  # each run starts anew
    assert no_progress() is None
    note("wrote a sheet")
    assert capsys.readouterr().err == "wrote a sheet\n"
    assert run("--quiet", "--verbose", "score", gone).exit_code == 2


def test_verbose_tells_where_an_error_comes_from_and_how_long_it_took(tmp_path: Path) -> None:
    result = run("--verbose", "score", tmp_path / "gone")
    assert result.exit_code == 1
    assert "Traceback" in result.stderr
    assert "mambaad: score took " in result.stderr
    run("score", tmp_path / "gone")  # so that the tests behind this one are not verbose
