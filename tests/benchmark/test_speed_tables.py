"""A benchmark on paper: ratios and exponents of made-up times, formats that parse back."""

import csv
import io
import json
import sys
from pathlib import Path

import pytest
from rich.console import Console

from mambaad_cli import MambaADError
from mambaad_cli.benchmark import speed_tables as bench_report
from mambaad_cli.benchmark.detectors import DetectorSpec
from mambaad_cli.benchmark.speed import Benchmark, SpeedResult, Timing, run
from tests.benchmark.rows import MAMBAAD, RD4AD, SIZE, UNIAD


@pytest.fixture(scope="module")
def measured() -> Benchmark:
    """All three at two resolutions."""
    return run([MAMBAAD, RD4AD, UNIAD], [(96, 64), SIZE], Timing(seconds=0.01, threads=1))


def made_up() -> Benchmark:
    """Two detectors with times chosen by hand, and one that ran out of memory."""
    first = SpeedResult(MAMBAAD, SIZE, 2_000_000, 1_000_000, 6_000_000_000, 3_000_000_000)
    first.latency, first.batch, first.throughput, first.peak_memory = [0.1, 0.2, 0.4], 4, [2.0, 2.0, 4.0], 50_000_000
    other = SpeedResult(RD4AD, SIZE, 5_000_000, 4_000_000, 8_000_000_000, 0)
    other.latency, other.batch, other.throughput = [0.3, 0.2, 0.8], 2, [0.5, 2.0, 1.0]
    failed = SpeedResult(UNIAD, SIZE, 3_000_000, 2_000_000, error="out of memory")
    machine = {"device": "Abacus", "threads": "1", "precision": "fp32", "scan": "beads"}
    return Benchmark(machine | {"mambaad": "0", "torch": "0", "python": "0"}, [first, other, failed], [0.5, 0.5, 0.7])


# Numbers from times


def test_ratios_are_taken_within_rounds() -> None:
    mambaad, rd4ad, uniad = bench_report.records(made_up())
    # 0.3/0.1, 0.2/0.2, 0.8/0.4 = 3, 1, 2; ends by linear interpolation: 1 + 0.2, 3 − 0.2
    keys = ("latency_ratio", "latency_ratio_p10", "latency_ratio_p90")
    assert [rd4ad[key] for key in keys] == pytest.approx([2, 1.2, 2.8])
    # images/s 2/0.5, 2/2, 2/1 = 4, 1, 2 over 4/2, 4/2, 4/4 = 2, 2, 1: 2, 0.5, 2
    assert rd4ad["throughput_ratio"] == pytest.approx(2)
    assert rd4ad["throughput_ratio_p10"] == pytest.approx(0.8)
    assert mambaad["latency_ratio"] == mambaad["throughput_ratio"] == 1
    assert uniad["latency_ratio"] is uniad["throughput_ratio"] is None


def test_records_give_medians_in_the_units_they_name() -> None:
    mambaad, _, uniad = bench_report.records(made_up())
    assert mambaad["latency_ms_p50"] == pytest.approx(200)
    assert mambaad["latency_ms_p95"] == pytest.approx(380)  # nine tenths from the second to the third of three
    assert (mambaad["batch"], mambaad["images_per_s"]) == (4, 2)
    assert (mambaad["gmac_without_scan"], mambaad["scan_gflop"], mambaad["total_gflop"]) == (3, 3, 9)
    assert mambaad["peak_memory_mb"] == 50
    # 9 GFLOP of the 17.2 of a product, which takes 0.5 s
    assert mambaad["arithmetic_ms"] == pytest.approx(9e9 / (2 * 2048**3) * 500)
    assert (mambaad["latency_in_products"], mambaad["image_in_products"]) == (pytest.approx(0.4), pytest.approx(1.0))
    assert (uniad["arithmetic_ms"], uniad["latency_in_products"]) == (None, None)
    assert (uniad["latency_ms_p50"], uniad["images_per_s"], uniad["error"]) == (None, None, "out of memory")


def test_the_exponent_is_that_of_a_power_law() -> None:
    pixels = [256**2, 512**2, 1024**2]
    assert bench_report.fit_exponent(pixels, [3e-6 * p**1.25 for p in pixels]) == pytest.approx(1.25)
    assert bench_report.fit_exponent([100, 200, 400], [1.0, 4.0, 4.0]) == pytest.approx(1.0)  # least squares of 0, 2, 2
    assert bench_report.fit_exponent([100, 100], [1.0, 2.0]) is None


def test_scaling_fits_each_detector_where_it_was_timed() -> None:
    results = [SpeedResult(row, (side, side)) for side in (64, 128, 256) for row in (MAMBAAD, RD4AD, UNIAD)]
    for result in results:
        side = result.size[0]
        times = {"mambaad": [side**2.0], "rd4ad": [side**4.0], "uniad": [1.0] * (side == 64)}
        result.latency = times[result.spec.detector]
    assert bench_report.scaling(Benchmark({}, results)) == pytest.approx({"MambaAD tiny": 1.0, "RD4AD tiny": 2.0})


def test_total_is_the_sum_of_its_parts(measured: Benchmark) -> None:
    for record in bench_report.records(measured):
        parts = 2 * record["gmac_without_scan"] + record["scan_gflop"]
        assert record["total_gflop"] == pytest.approx(parts)


# Formats


def test_csv_reads_back() -> None:
    rows = list(csv.DictReader(io.StringIO(bench_report.to_csv(made_up()))))
    records = bench_report.records(made_up())
    assert list(rows[0]) == list(records[0])
    assert [row["detector"] for row in rows] == [record["detector"] for record in records]
    assert float(rows[1]["latency_ms_p50"]) == records[1]["latency_ms_p50"] == 300
    assert rows[2]["latency_ms_p50"] == ""
    assert rows[2]["error"] == "out of memory"


def test_json_reads_back(measured: Benchmark) -> None:
    whole = json.loads(bench_report.to_json(measured))
    assert whole["results"] == bench_report.records(measured)
    assert whole["machine"] == measured.machine
    assert whole["scaling"].keys() == {"MambaAD tiny", "RD4AD tiny", "UniAD tiny"}


def test_markdown_reads_back_as_one_table() -> None:
    lines = [line for line in bench_report.to_markdown(made_up()).splitlines() if line.startswith("|")]
    heads, rule, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    assert len(rows) == 3
    assert {len(row) for row in (heads, rule, *rows)} == {len(heads)}
    cells = dict(zip(heads, rows[1], strict=True))
    assert cells["M params<br>all/trained"] == "5.0/4.0"
    assert cells["batch 1, ms<br>p50/95/99"] == "300<br>750/790<br>× 2.00<br>1.20–2.80"
    assert cells["images/s<br>(batch)"] == "2.00 (2)<br>× 2.00<br>0.80–2.00"
    assert rows[2][0] == "UniAD tiny<br>resnet18<br>out of memory"


def test_a_table_of_80_columns_shows_every_figure() -> None:
    console = Console(width=80, file=io.StringIO(), color_system=None)
    console.print(bench_report.to_table(made_up()))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for figure in ("2.0/1.0", "3.00", "9.00", "50.0", "380/396", "2.00 (4)", "1.20–2.80", "out of memory", "Abacus"):
        assert figure in text
    assert "…" not in text


def test_published_parameters_of_uniad_are_explained_where_it_is_shown() -> None:
    published = SpeedResult(DetectorSpec("UniAD", "uniad", "efficientnet_b4", {}), SIZE)
    assert any(
        "24.52 M parameters: that count includes the blocks" in note
        for note in bench_report.notes(Benchmark({}, [published]))
    )
    assert not any("24.52 M" in note for note in bench_report.notes(made_up()))


# Plots


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_a_plot_is_written(tmp_path: Path, measured: Benchmark, suffix: str) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / f"speed{suffix}"
    bench_report.plot(measured, path)
    assert path.read_bytes()[:5] in (b"\x89PNG\r", b"<?xml")


def test_a_plot_without_matplotlib_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MambaADError, match=r"mambaad\[plot\]"):
        bench_report.check_plot(tmp_path / "speed.png")


def test_a_plot_in_another_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MambaADError, match=r"\.png or \.svg"):
        bench_report.check_plot(tmp_path / "speed.bmp")
