"""The page in a real browser: it opens, sorts, filters, tries thresholds, and runs nothing that a name says."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from mambaad_cli.inspection.regions import Region
from mambaad_cli.inspection.row_files import Row
from tests.report.browser import PROGRAM, Browser
from tests.report.rows import HOSTILE, made_up, rows_of

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium on this machine: apt-get install chromium")
SHOWN = "[...document.querySelectorAll('table.images tbody tr:not([hidden])')].map(row => row.dataset.name)"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    one = Browser()
    yield one
    one.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 images, one with a hostile name, one that is unreadable and one with two regions."""
    region = Region((10, 20, 30, 40), 900, 9.0, (20, 30), (25, 40))
    other = Region((100, 20, 30, 40), 900, 8.0, (110, 30), (115, 40))
    others = [
        Row(HOSTILE, "nut", 9.0, 2.0, "anomalous", regions=(region, other)),
        Row("in/gone.png", "nut", verdict="error", error="no such <b>file</b>"),
    ]
    return made_up(tmp_path_factory.mktemp("page") / "report.html", rows_of(38) + others, "Line <4> & more")


@pytest.fixture
def page(browser: Browser, file: Path) -> Browser:
    browser.open(file)
    return browser


def number(page: Browser, path: str) -> str:
    return str(page.js(f"document.querySelector({path!r}).textContent"))


def test_it_opens_without_a_problem_and_asks_for_nothing_else(page: Browser) -> None:
    assert page.js("document.title") == "Line <4> & more"
    assert page.problems == []
    assert [url[:5] for url in page.requested if not url.startswith("data:")] == ["file:"]
    assert page.js("document.querySelector('table.images img').naturalWidth") > 60
    assert page.js("document.querySelector('#count').value") == "40 images"


def test_the_worst_come_first(page: Browser) -> None:
    assert page.js(SHOWN)[:3] == ["in/gone.png", HOSTILE, "in/nut_37.png"]


def test_a_name_is_text_and_never_runs(page: Browser) -> None:
    assert number(page, "tbody tr:nth-child(2) td.name a") == 'script>"><img src=x onerror=alert(2)>.png'
    assert page.js("document.querySelectorAll('table.images script, table.images img:not([alt])').length") == 0
    assert "no such <b>file</b>" in number(page, "tbody tr td.verdict")
    link = page.js("document.querySelector('tbody tr:nth-child(2) td.name a').href")
    assert link.startswith("file:///")
    assert link.endswith("%3C/script%3E%22%3E%3Cimg%20src%3Dx%20onerror%3Dalert%282%29%3E.png")
    # and where a script came in all the same, the page's own policy would stop it
    page.js("document.body.append(Object.assign(document.createElement('script'), {text: 'window.ran = 1'}))")
    assert page.js("window.ran") is None
    assert "Content Security Policy" in page.problems[0]


def test_columns_sort_by_keyboard_both_ways(page: Browser) -> None:
    page.js("document.querySelector('th[data-sort=name] button').focus()")
    page.key("Enter", 13, "\r")
    names = page.js(SHOWN)
    assert names[1:4] == ["in/bolt_2.png", "in/bolt_4.png", "in/bolt_6.png"]  # by value: 2 before 10; < comes first
    assert page.js("document.querySelector('th[data-sort=name]').ariaSort") == "ascending"
    page.key("Enter", 13, "\r")
    assert page.js(SHOWN) == names[::-1]
    assert page.js("document.querySelectorAll('th[aria-sort]').length") == 1
    page.js("document.querySelector('th[data-sort=p] button').click()")
    assert page.js(SHOWN)[0] == "in/bolt_38.png"
    assert set(page.js(SHOWN)[-2:]) == {"in/gone.png", HOSTILE}  # without a p-value: last, whichever way


def test_filters_leave_what_fits_all_of_them(page: Browser) -> None:
    page.js("document.querySelector('#find').focus()")
    page.type("NUT_1")
    assert page.js(SHOWN) == [f"in/nut_{i}.png" for i in (19, 17, 15, 13, 11, 1)]
    assert page.js("document.querySelector('#count').value") == "6 of 40 images"
    page.click("input[value=good]")
    assert page.js(SHOWN) == ["in/nut_19.png", "in/nut_17.png"]
    page.js("const day = document.querySelector('#day'); day.value = '=2026-03-02'; "
            "day.dispatchEvent(new Event('input', {bubbles: true}))")  # fmt: skip
    assert page.js(SHOWN) == []
    page.js("document.querySelector('#find').value = ''")
    page.js("const chosen = document.querySelector('#product'); chosen.value = '=bolt'; "
            "chosen.dispatchEvent(new Event('input', {bubbles: true}))")  # fmt: skip
    assert page.js(SHOWN) == [f"in/bolt_{i}.png" for i in range(38, 24, -2)]


def test_a_dragged_threshold_tells_what_it_would_reject(page: Browser) -> None:
    """Of nut there are 1/8, 3/8, … 37/8 and 9: at 2, 11 + 1 of 20 lie above; 3.0 lets 8, 17/8 to 23/8, pass as well."""
    assert "At 2, 12 of 20 (60.0%) images would be rejected." in number(page, "#would")
    page.js("document.querySelector('#threshold').focus()")
    page.js("document.querySelector('#threshold').select()")
    page.type("3")
    assert "At 3, 8 of 20 (40.0%) images would be rejected; at the model’s 2 it is 12." in number(page, "#would")
    page.click("#changed")
    assert page.js(SHOWN) == [f"in/nut_{i}.png" for i in (23, 21, 19, 17)]
    assert number(page, "tr[data-name='in/nut_17.png'] .would-be") == "→ passes"
    page.click("#changed")
    page.mouse("#histogram", "mousePressed", 0.5)
    page.mouse("#histogram", "mouseMoved", 0.001)
    page.mouse("#histogram", "mouseReleased", 0.001)
    assert "20 of 20 (100.0%)" in number(page, "#would")
    page.js("document.querySelector('#slider').focus()")
    page.key("End", 35)
    assert " 0 of 20 (0.0%)" in number(page, "#would") or " 1 of 20" in number(page, "#would")
    page.click("#reset")
    assert "At 2, 12 of 20" in number(page, "#would")
    assert page.js("document.querySelectorAll('.would-be:not(:empty)').length") == 0


def test_each_product_has_its_own_histogram(page: Browser) -> None:
    page.js("const of = document.querySelector('#scored'); of.value = 'bolt'; of.dispatchEvent(new Event('change'))")
    assert "At 3, 7 of 19 (36.8%) images would be rejected." in number(page, "#would")  # 26/8 to 38/8


def test_wrong_verdicts_are_saved_as_corrections(page: Browser) -> None:
    save = "document.querySelector('#save')"
    assert page.js(f"{save}.hidden")
    page.js(
        "window.saved = []; URL.createObjectURL = (blob) => { blob.text().then((t) => saved.push(t)); return '#'; }"
    )
    buttons = "document.querySelectorAll('button.wrong:not([hidden])')"
    assert page.js(f"{buttons}.length") == 39  # not of the one that could not be read
    for place in (0, 1, 38, 1):  # pressed again, it is right after all
        page.js(f"{buttons}[{place}].click()")
    assert page.js(f"{save}.textContent") == "Save 2 corrections"
    page.js(f"{save}.click()")
    page.js("new Promise((done) => setTimeout(done, 200))")
    corrections = json.loads(page.js("saved[0]"))
    assert corrections["schema"] == 1
    first, last = corrections["corrections"]
    assert (first["path"], first["product"], first["verdict"], first["correct"]) == (
        HOSTILE,
        "nut",
        "anomalous",
        "good",
    )
    assert (last["verdict"], last["correct"]) == ("good", "bad")


def test_a_picture_opens_large_by_keyboard(page: Browser) -> None:
    page.js("document.querySelector('tbody tr:nth-child(2) .pictures').focus()")
    page.key("Enter", 13, "\r")
    assert page.js("document.querySelector('#large').open") is True
    assert page.js("document.querySelectorAll('#large img').length") == 2
    assert page.js("document.querySelector('#large .box').style.left") == "2.5%"  # 10 of 400 pixels
    assert "9" in number(page, "#large .regions li")
    page.key("ArrowRight", 39)
    assert number(page, "#large-title") == "nut_37.png"
    page.key("Escape", 27)
    page.js("new Promise(requestAnimationFrame)")
    assert page.js("document.querySelector('#large').open") is False
    assert page.js("document.activeElement.getAttribute('aria-label')") == "Enlarge nut_37.png"


def test_a_click_on_a_region_tells_why_it_is_anomalous(page: Browser) -> None:
    shown = "document.querySelector('#large .explanation img')?.alt ?? null"
    page.click("tbody tr:nth-child(2) .pictures")
    assert page.js(shown) is None
    page.click("#large button.box")
    assert page.js(shown) == "Why region 1 is anomalous"
    assert page.js("document.querySelectorAll('#large i.box').length") == 1  # only the first region is explained
    page.key("Escape", 27)
    page.click("tbody tr:nth-child(2) button.why")
    assert page.js(shown) == "Why region 1 is anomalous"


def test_all_shown_pictures_are_printed(page: Browser) -> None:
    assert page.js("document.querySelectorAll('img[data-src]').length") > 0  # those further down wait
    assert page.pdf("1").startswith(b"%PDF")
    assert page.js("document.querySelectorAll('img[data-src]').length") == 0


def test_many_rows_come_as_one_scrolls_and_all_are_printed(browser: Browser, tmp_path: Path) -> None:
    from mambaad_cli.report import page as pages
    from mambaad_cli.report.content import Entry, Report

    path = tmp_path / "many.html"
    pages.write(Report("Many", [Entry(row) for row in rows_of(1000)], []), path)
    browser.open(path)
    assert browser.js(f"{SHOWN}.length") == 300
    assert browser.js("document.querySelector('#count').value") == "1000 images"
    browser.js("document.querySelector('#rest').scrollIntoView()")
    browser.js("new Promise(done => requestAnimationFrame(() => setTimeout(done, 50)))")
    assert browser.js(f"{SHOWN}.length") == 600
    browser.js("dispatchEvent(new Event('beforeprint'))")
    assert browser.js(f"{SHOWN}.length") == 1000


def test_every_control_has_a_name(page: Browser) -> None:
    """As the browser's own accessibility tree tells it."""
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    controls = [one for one in nodes if one.get("role", {}).get("value") in
                ("button", "checkbox", "combobox", "searchbox", "slider", "spinbutton", "link")]  # fmt: skip
    assert len(controls) > 50
    assert [one for one in controls if not one.get("name", {}).get("value")] == []


def test_rows_without_scores_pictures_and_times_make_a_page_too(browser: Browser, tmp_path: Path) -> None:
    from mambaad_cli.report import page as pages
    from mambaad_cli.report.content import Entry, Report

    rows = [Row("a\udcff\n.png", verdict="error", error="empty"), Row("b.png", score=-1.5, verdict="uncalibrated")]
    path = tmp_path / "bare.html"
    pages.write(Report("Bare", [Entry(row) for row in rows], []), path)
    browser.open(path)
    assert browser.problems == []
    assert browser.js(SHOWN) == ["a\\udcff\\n.png", "b.png"]
    assert browser.js("getComputedStyle(document.querySelector('td.time')).display") == "none"
