"""The command line wins over a variable, a variable over mambaad.toml, the file over a default."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomllib
import typer

from mambaad_cli.cli import app, settings_file
from mambaad_cli.cli.output import speech
from mambaad_cli.data import images
from mambaad_cli.data.roi import parse
from tests.cli.test_commands import complaint, model, run  # noqa: F401 - model is a fixture

GROUP: Any = typer.main.get_command(app)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.delenv("MAMBAAD_MODEL", raising=False)
    return tmp_path / "work"


def settings(*args: object, **env: str) -> dict[str, dict[str, Any]]:
    """What `mambaad config --json` finds: the values by command and key."""
    commands = json.loads(run(*args, "config", "--json", **env).stdout)["commands"]
    return {name: {key: facts["value"] for key, facts in keys.items()} for name, keys in commands.items()}


def columns(text: str) -> list[str]:
    return text.splitlines()[0].split(",")


def test_each_place_wins_over_the_next(model: Path, goods: Path) -> None:  # noqa: F811
    model.rename("a.safetensors")
    assert "no model mambaad.safetensors" in complaint(run("score", goods))
    Path("mambaad.toml").write_text('[score]\nmodel = "b.safetensors"\n')
    assert "no model b.safetensors" in complaint(run("score", goods))
    assert "no model c" in complaint(run("score", goods, MAMBAAD_MODEL="c"))
    assert "no model d" in complaint(run("score", goods, MAMBAAD_MODEL="c", MAMBAAD_SCORE_MODEL="d"))
    assert "no model e" in complaint(run("score", goods, "--model", "e", MAMBAAD_MODEL="c", MAMBAAD_SCORE_MODEL="d"))
    assert run("score", goods, "-m", "a.safetensors", MAMBAAD_SCORE_MODEL="d").exit_code == 0


def test_a_table_sets_flags_numbers_and_lists_and_a_variable_unsets_a_flag(model: Path, goods: Path) -> None:  # noqa: F811
    plain = run("score", goods, "--csv", "--ignore", "0,0,10,10").stdout
    Path("mambaad.toml").write_text('[score]\ncsv = true\nbatch = 3\nignore = ["0,0,10,10"]\n')
    assert run("score", goods).stdout == plain
    assert run("score", goods, MAMBAAD_SCORE_CSV="0").stdout != plain
    rows = [json.loads(line) for line in run("score", goods, "--json").stdout.splitlines()]
    assert len(rows) == 12  # --json on the command line drops csv of the file


def test_the_shared_table_holds_for_all_commands_and_a_table_of_a_command_wins(folder: Path) -> None:
    (folder / "mambaad.toml").write_text('[mambaad]\ndevice = "cpu"\nres = 128\n[score]\nres = 64\n')
    found = settings()
    having = {name for name, one in GROUP.commands.items() if "device" in settings_file.options(one)}
    assert {name for name, keys in found.items() if keys.get("device") == "cpu"} == having
    assert (found["score"]["res"], found["fit"]["res"]) == ("64", "128")
    assert "doctor" not in found


def test_options_of_the_application_come_from_the_shared_table(folder: Path) -> None:
    (folder / "mambaad.toml").write_text("[mambaad]\nquiet = true\n")
    run("config")
    assert speech.quiet
    run("config", MAMBAAD_QUIET="0")
    assert not speech.quiet
    (folder / "mambaad.toml").unlink()
    run("config")
    assert not speech.quiet


def test_paths_in_the_file_are_relative_to_its_folder(model: Path, goods: Path) -> None:  # noqa: F811
    line = goods.parent / "line3"
    line.mkdir()
    model.rename(line / "parts.safetensors")
    images.write(line / "mask.png", np.full((80, 96), 255, np.uint8))
    text = '[score]\nmodel = "parts.safetensors"\ncsv = true\noutput = "rows.csv"\n'
    (line / "line3.toml").write_text(f'{text}[fit]\nroi = ["nut=mask.png", "bolt=0,0,50,50"]\n')
    result = run("--config", line / "line3.toml", "score", goods)
    assert result.exit_code == 0, result.output
    assert len((line / "rows.csv").read_text().splitlines()) == 13
    found = settings("--config", line / "line3.toml")["fit"]
    assert found["roi"] == [f"nut={line / 'mask.png'}", "bolt=0,0,50,50"]
    assert settings(MAMBAAD_CONFIG=str(line / "line3.toml"))["fit"] == found


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("[fitt]", "mambaad.toml: [fitt]: no such command: did you mean fit?"),
        ("[fit]\nepoch = 3", "mambaad.toml: [fit] epoch: no such option: did you mean epochs?"),
        ("[fit]\ngood = 'x'", "mambaad.toml: [fit] good: no such option"),  # an argument
        ("[score]\nconfig = 'x'", "mambaad.toml: [score] config: no such option"),
        ("[mambaad]\ndevise = 'cpu'", "mambaad.toml: [mambaad] devise: no such option: did you mean device?"),
        ("[fit]\nepochs = 'many'", "mambaad.toml: [fit] epochs: expected a whole number, not 'many'"),
        ("[fit]\nepochs = true", "mambaad.toml: [fit] epochs: expected a whole number, not True"),
        ("[fit]\nepochs = 2.5", "mambaad.toml: [fit] epochs: expected a whole number, not 2.5"),
        ("[fit]\nepochs = [3]", "mambaad.toml: [fit] epochs: expected one value, not a list"),
        ("[fit]\nepochs = 0", "mambaad.toml: [fit] epochs: 0"),
        ("[fit]\ntiles = 'yes'", "mambaad.toml: [fit] tiles: expected true or false, not 'yes'"),
        ("[fit]\nscan = 'spiral'", "mambaad.toml: [fit] scan: 'spiral' is not one of "),
        ("[fit]\nmodel = 3", "mambaad.toml: [fit] model: expected text in quotes, not 3"),
        ("[fit]\nroi = [[1]]", "mambaad.toml: [fit] roi: expected text in quotes, not [1]"),
        ("[score]\nreview = '200%'", "mambaad.toml: [score] review: '200%': expected a share"),
        ("[fit]\nmax-minutes = 1\nmax_minutes = 2", "mambaad.toml: [fit] max_minutes: it is there twice"),
        ("epochs = 3", "mambaad.toml: epochs: expected it in a table, such as [fit] or [mambaad]"),
        ("[fit", "mambaad.toml: not a TOML file: "),
    ],
)
def test_an_error_names_the_file_the_table_and_the_key(folder: Path, text: str, error: str) -> None:
    (folder / "mambaad.toml").write_text(text)
    assert error in complaint(run("config"))
    assert error in complaint(run("score", "."))
    assert run("score", "--help").exit_code == 0  # help and version can always be had
    assert run("--version").exit_code == 0


def test_files_that_cannot_be_read_are_one_line(folder: Path) -> None:
    assert "no file gone.toml" in complaint(run("--config", "gone.toml", "config"))
    assert "cannot read" in complaint(run("--config", ".", "config"))
    (folder / "latin.toml").write_bytes(b'[fit]\ndevice = "\xe4"')
    assert "not a TOML file" in complaint(run("--config", "latin.toml", "config"))


def test_a_polygon_in_the_file_may_be_longer_than_the_name_of_a_file(folder: Path) -> None:
    corners = " ".join(f"{x},{x * x % 97}" for x in range(100))
    (folder / "mambaad.toml").write_text(f"[fit]\nroi = 'nut={corners}'\n")
    assert settings() == {"fit": {"roi": [f"nut={corners}"]}}
    assert "no file " in complaint(run("--config", "x" * 300, "config"))


def test_a_wrong_value_of_a_variable_names_the_variable(folder: Path) -> None:
    result = run("fit", ".", MAMBAAD_FIT_EPOCHS="many")
    assert result.exit_code == 2
    assert "MAMBAAD_FIT_EPOCHS" in " ".join(result.stderr.split())
    assert "MAMBAAD" not in run("fit", ".", "--epochs", "many").stderr


def test_variables_of_options_leave_older_variables_alone() -> None:
    older = {"MAMBAAD_MODEL", "MAMBAAD_MAX_PIXELS", "MAMBAAD_WEBHOOK_SECRET", "MAMBAAD_CONFIG"}
    names = [
        settings_file.variable(name, key)
        for name, command in ({"": GROUP} | GROUP.commands).items()
        for key in settings_file.options(command)
    ]
    assert len(names) == len(set(names)) > 150
    assert older & set(names) == set()


def test_the_command_line_of_a_fit_takes_its_settings_from_the_file(folder: Path) -> None:
    (folder / "mambaad.toml").write_text("[fit]\nepochs = 3\nbad = 'gone'\n")
    context = GROUP.make_context("mambaad", ["fit", "."])
    settings_file.use_settings(context, "fit")
    assert context.default_map == {"fit": {"epochs": 3, "bad": "gone"}}


def parsed(command: str, *typed: str, **env: str) -> dict[str, Any]:
    """The options of a command as it gets them, from the file, from variables and as they are typed."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in env.items():
            patch.setenv(name, value)
        context = GROUP.make_context("mambaad", [command, "."])
        settings_file.use_settings(context, command)
        return GROUP.commands[command].make_context(command, [".", *typed], parent=context).params


@pytest.mark.parametrize(
    ("command", "table", "env", "typed", "expected"),
    [
        ("fit", "epochs = 3", {}, ["--max-minutes=2"], {"epochs": None, "max_minutes": 2.0}),
        ("fit", "epochs = 3", {"MAMBAAD_FIT_MAX_MINUTES": "2"}, [], {"epochs": None, "max_minutes": 2.0}),
        ("fit", "", {"MAMBAAD_FIT_EPOCHS": "3"}, ["--max-minutes", "2"], {"epochs": None, "max_minutes": 2.0}),
        ("fit", "fast = true", {}, ["--preset", "paper"], {"fast": False, "preset": "paper"}),
        ("fit", "fast = true", {}, ["--preset", "small"], {"fast": False, "preset": "small"}),
        ("fit", "preset = 'paper'\ndetector = 'rd4ad'", {}, ["--fast"],
         {"fast": True, "preset": "small", "detector": "mambaad"}),
        ("fit", "detector = 'rd4ad'", {}, ["--preset", "paper"], {"detector": "mambaad", "preset": "paper"}),
        ("fit", "preset = 'paper'", {}, ["--detector", "mambaad"], {"detector": "mambaad", "preset": "paper"}),
        ("fit", "detail = 2\npixels = 128", {}, ["--res", "64"], {"detail": None, "pixels": None, "res": "64"}),
        ("fit", "detail = 2", {"MAMBAAD_FIT_LETTERBOX": "1"}, ["--pixels", "128"],
         {"detail": 2.0, "letterbox": False, "pixels": 128}),
        ("fit", "letterbox = true", {}, ["--detail", "2"], {"detail": 2.0, "letterbox": False}),
        ("score", "json = true\nregions = true\nmin-area = 9", {}, ["--csv"],
         {"as_csv": True, "as_json": False, "regions": False, "min_area": 0}),
        ("score", "", {"MAMBAAD_SCORE_CSV": "1"}, ["--json"], {"as_csv": False, "as_json": True}),
        ("score", "csv = true", {"MAMBAAD_SCORE_JSON": "0"}, [], {"as_csv": True, "as_json": False}),
        ("score", "csv = true\njson = true", {}, [], {"as_csv": True, "as_json": True}),  # it refuses both
        ("export", "check = '.'", {}, ["--no-check"], {"no_check": True, "check": None}),
    ],
)  # fmt: skip
def test_of_options_that_exclude_each_other_the_stronger_source_wins(
    folder: Path, command: str, table: str, env: dict[str, str], typed: list[str], expected: dict[str, Any]
) -> None:
    (folder / "mambaad.toml").write_text(f"[{command}]\n{table}\n")
    found = parsed(command, *typed, **env)
    assert {name: found[name] for name in expected} == expected


def test_spaces_in_a_variable_separate_values(folder: Path) -> None:
    """As the page on settings says."""
    given = "nut=0,0;50,0;50,50 bolt=1,2,3,4"
    roi = parsed("fit", MAMBAAD_FIT_ROI=given)["roi"]
    assert roi == given.split()
    assert len(parse(roi[0]).corners) == 3


def test_of_quiet_and_verbose_the_stronger_source_wins(folder: Path) -> None:
    (folder / "mambaad.toml").write_text("[mambaad]\nquiet = true\n")
    assert run("-v", "config").exit_code == 0
    assert (speech.quiet, speech.verbose) == (False, True)
    assert run("config", MAMBAAD_VERBOSE="1").exit_code == 0
    assert (speech.quiet, speech.verbose) == (False, True)
    assert run("-q", "config", MAMBAAD_VERBOSE="1").exit_code == 0
    assert (speech.quiet, speech.verbose) == (True, False)
    assert run("-q", "-v", "config").exit_code == 2
    (folder / "mambaad.toml").unlink()
    run("config")


def test_config_tells_people_where_each_value_comes_from(folder: Path) -> None:
    assert "nothing is set" in run("config").stdout
    (folder / "mambaad.toml").write_text("[fit]\nepochs = 3\nlr = 1\n")
    shown = run("config", MAMBAAD_FIT_EPOCHS="4").stdout
    assert shown == '[fit]\n    epochs = "4"    (MAMBAAD_FIT_EPOCHS)\n    lr = 1    (mambaad.toml [fit])\n'


def test_python_3_10_reads_the_file_by_tomli(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "mambaad.toml").write_text("[fit]\nepochs = 3\n")
    monkeypatch.setitem(sys.modules, "tomllib", None)
    monkeypatch.setitem(sys.modules, "tomli", tomllib)
    assert settings() == {"fit": {"epochs": 3}}
