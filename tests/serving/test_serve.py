"""The command: as it is started, reloaded, stopped, and used from a browser."""

import http.client
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import mambaad_cli
from mambaad_cli.api import FittedModel
from mambaad_cli.cli import app
from tests.code_blocks import ROOT, blocks_of
from tests.conftest import calibrated, with_products
from tests.report.browser import PROGRAM, Browser
from tests.serving.conftest import Server, needs_the_extra

PAGE = ROOT / "docs" / "how-to" / "serve.md"


def ask(server: Server, method: str, path: str, body: bytes | None = None) -> tuple[int, Any]:
    """The status and the JSON of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
    try:
        connection.request(method, path, body)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def test_it_answers_takes_up_a_new_model_and_finishes_what_it_has_accepted(
    serving: Callable[..., Server], tiny_model: FittedModel, tmp_path: Path, photo: bytes
) -> None:
    server = serving("--wait", 2000, "--batch", 2, "--max-bytes", 10**6)
    assert server.first_line == f"m.safetensors answers at {server.url}; Ctrl-C ends it\n"
    assert ask(server, "GET", "/health") == (200, {"status": "ok"})
    status, row = ask(server, "POST", "/score?class=nut&name=a.png", photo)
    assert (status, row["path"], row["model"]) == (200, "a.png", mambaad_cli.load(tmp_path / "m.safetensors").sha256)
    assert ask(server, "POST", "/score", b"x" * (10**6 + 1))[0] == 413

    strict = with_products(tiny_model, *(calibrated(product, [-1e9]) for product in tiny_model.products.values()))
    strict.save(tmp_path / "m.safetensors")
    second = mambaad_cli.load(tmp_path / "m.safetensors").sha256
    until = time.monotonic() + 60
    while ask(server, "GET", "/model")[1]["model"] != second:  # taken up while no photo comes
        assert time.monotonic() < until
        time.sleep(0.05)

    answers: list[tuple[int, Any]] = []
    thread = threading.Thread(target=lambda: answers.append(ask(server, "POST", "/score?class=nut", photo)))
    thread.start()
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
    waiting = b""
    while b"mambaad_queue_length 1" not in waiting:  # it waits 2 seconds for another
        assert thread.is_alive()
        connection.request("GET", "/metrics")
        waiting = connection.getresponse().read()
    connection.close()
    status, said = server.end()
    thread.join()
    assert (answers[0][0], answers[0][1]["verdict"], answers[0][1]["model"]) == (200, "anomalous", second)
    assert status == 0
    assert said.splitlines() == [
        f"mambaad: the model was replaced: photos are scored by {second} from now on",
        "2 photos scored",
    ]


def test_what_cannot_be_served_is_said_in_a_line(tiny_model: FittedModel, tmp_path: Path) -> None:
    needs_the_extra()
    tiny_model.save(tmp_path / "m.safetensors")

    def said(*options: object, token: str = "") -> str:
        words = ["serve", "-m", tmp_path / "m.safetensors", *options]
        result = CliRunner().invoke(app, [str(word) for word in words], env={"MAMBAAD_TOKEN": token})
        assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
        return result.stderr

    assert "set MAMBAAD_TOKEN to a secret of your choice first" in said("--host", "0.0.0.0")
    for token in ("säcret", "two words", "tab\tin it"):  # no client could send it, or another one would do
        refusal = "mambaad: MAMBAAD_TOKEN must be ASCII without spaces, such as openssl rand -hex 32 gives\n"
        assert said("--host", "203.0.113.7", token=token) == refusal
    assert said("--host", "203.0.113.7", token="x").startswith("mambaad: cannot listen on 203.0.113.7 port 8000: ")
    assert "must be more than the" in said("--port", 0, "--review", "0.01")


def test_examples_of_the_page_run(
    serving: Callable[..., Server], tiny_model: FittedModel, cookies: Path, tmp_path: Path
) -> None:
    """As docs/how-to/serve.md shows them, on another port."""
    with_products(tiny_model, tiny_model.products["nut"]).save(tmp_path / "one.safetensors")
    server = serving("-m", tmp_path / "one.safetensors")
    (tmp_path / "incoming").mkdir()
    for name in ("broken_01.jpg", "good_01.jpg"):
        shutil.copy(cookies / "incoming" / name, tmp_path / "incoming")
    found = [block for block in blocks_of(PAGE) if block.remark == "run by tests/serving/test_serve.py"]
    assert {block.language for block in found} == {"bash", "python"}
    for block in found:
        code = block.code.replace("http://localhost:8000", server.url)
        if block.language == "bash" and shutil.which("curl") is None:
            continue
        command = ["bash", "-e", "-c", code] if block.language == "bash" else [sys.executable, "-c", code]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert re.search(r"\b(good|review|anomalous)\b", done.stdout), done.stdout
    if shutil.which("curl") is not None:
        assert (tmp_path / "overlay.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.skipif(PROGRAM is None, reason="no Chromium on this machine: apt-get install chromium")
def test_a_photo_dropped_on_the_page_gets_its_verdict_overlay_and_regions(
    serving: Callable[..., Server], tiny_model: FittedModel, tmp_path: Path, photo: bytes
) -> None:
    products = tiny_model.products
    with_products(tiny_model, *(calibrated(product, [-1e9]) for product in products.values())).save(
        tmp_path / "strict.safetensors"
    )
    server = serving("-m", tmp_path / "strict.safetensors", token="secret")
    (tmp_path / "<b>nut.png").write_bytes(photo)
    (tmp_path / "torn.png").write_bytes(photo[:400])
    browser = Browser()
    try:
        browser.call("Page.navigate", url=server.url)
        while "Page.loadEventFired" not in browser.events:
            browser._next()
        until_true(browser, "!document.getElementById('token-label').hidden")
        browser.js("document.getElementById('token').focus()")
        browser.type("secret")
        browser.key("Enter", 13, "\r")
        until_true(browser, "document.getElementById('model').textContent.endsWith('nut, bolt')")
        browser.js("document.getElementById('product').value = 'nut'")
        for name in ("torn.png", "<b>nut.png"):
            for kind in ("dragEnter", "dragOver", "drop"):
                data = {"items": [], "files": [str(tmp_path / name)], "dragOperationsMask": 1}
                browser.call("Input.dispatchDragEvent", type=kind, x=300, y=300, data=data)
            until_true(browser, f"document.querySelector('article h2')?.textContent === {json.dumps(name)}")
        verdicts = "[...document.querySelectorAll('article .verdict')].map(one => one.textContent)"
        assert browser.js(verdicts) == ["anomalous", "error"]
        until_true(browser, "document.querySelector('article img').naturalWidth === 96")
        assert browser.js("document.querySelectorAll('article:first-child tbody tr').length") >= 1
        assert "score" in browser.js("document.querySelector('article .facts').textContent")
        assert browser.js("document.querySelector('article:last-child .facts').textContent").startswith("truncated")
        assert {url.split("/")[2] for url in browser.requested if url.startswith("http")} == {
            f"127.0.0.1:{server.port}"
        }
        refusals = ("401", "422")  # of /model before the token was typed, and of the torn photo
        assert [one for one in browser.problems if not any(status in one for status in refusals)] == []
        if folder := os.environ.get("SCREENSHOTS"):
            Path(folder, "serve.png").write_bytes(browser.screenshot(whole=True))
        server.end()
        browser.js("void showModel()")
        until_true(browser, "document.getElementById('model').textContent.startsWith('the server does not answer: ')")
    finally:
        browser.close()


def until_true(browser: Browser, expression: str) -> None:
    until = time.monotonic() + 60
    while not browser.js(expression):
        assert time.monotonic() < until, (expression, browser.problems)
        time.sleep(0.05)
