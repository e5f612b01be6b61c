"""What each address answers, and what it refuses."""

import base64
import io
import json
import struct
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import mambaad_cli
from mambaad_cli.api import FittedModel
from mambaad_cli.data import images
from mambaad_cli.inspection.predict import predict
from mambaad_cli.inspection.prediction import PredictOptions
from mambaad_cli.inspection.rows import json_line, json_row
from mambaad_cli.serving.batching import BatchOptions
from tests.conftest import calibrated, picture, with_products
from tests.serving.conftest import Answering, Watched, encoded

NOT_COMPARED = ("path", "time")


def expected_row(model: FittedModel, path: Path, class_name: str | None = None) -> dict[str, Any]:
    """What `mambaad score --json --regions` writes of a file."""
    options = PredictOptions(class_name, min_area=0)
    (prediction,) = predict(model.scorer, images.find([path]), options)
    row: dict[str, Any] = json.loads(json_line(json_row(prediction, model.sha256, regions=True)))
    return row


def assert_same(row: dict[str, Any], expected: dict[str, Any]) -> None:
    assert list(row) == list(expected)
    for name in set(expected) - set(NOT_COMPARED):
        want = expected[name]
        assert row[name] == (pytest.approx(want, rel=1e-4) if isinstance(want, float) else want), name


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp"])
def test_a_raw_image_gets_the_row_that_score_gives(
    client: Answering, tiny_model: FittedModel, tmp_path: Path, suffix: str
) -> None:
    large = picture(1, 1200, 1600)  # its JPEG is decoded at a smaller size
    (tmp_path / f"0{suffix}").write_bytes(encoded(large, suffix))
    data = (tmp_path / f"0{suffix}").read_bytes()
    answer = client().post("/score", params={"regions": "", "class": "nut", "name": "line 1/ä.png"}, content=data)
    assert answer.status_code == 200
    row = answer.json()
    assert row["path"] == "line 1/ä.png"
    assert_same(row, expected_row(tiny_model, tmp_path / f"0{suffix}", "nut"))


def test_several_images_get_their_rows_in_order_and_a_damaged_one_its_error(
    client: Answering, tiny_model: FittedModel, goods: Path
) -> None:
    paths = sorted((goods / "nut").iterdir())
    files: list[tuple[str, tuple[str, bytes]]] = [("photo", (path.name, path.read_bytes())) for path in paths]
    files.insert(2, ("photo", ("torn.png", paths[0].read_bytes()[:500])))
    answer = client().post("/score?class=nut", files=files)
    assert answer.status_code == 200
    rows = answer.json()
    assert [row["path"] for row in rows] == ["0.png", "1.png", "torn.png", "2.png", "3.png", "4.png", "5.png"]
    assert rows[2]["verdict"] == "error"
    assert rows[2]["error"] == "truncated: the file ends before the image does"
    for row, path in zip(rows[:2] + rows[3:], paths, strict=True):
        expected = expected_row(tiny_model, path, "nut")
        del expected["regions"]
        assert_same(row, expected)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_raw_pixels_are_scored_as_the_image_of_them(client: Answering, channels: int) -> None:
    rgb = picture(3)
    pixels = {1: rgb[..., :1], 3: rgb, 4: np.dstack([rgb, np.full(rgb.shape[:2], 255, np.uint8)])}[channels]
    query = {"width": 96, "height": 80, "channels": channels, "class": "bolt"}
    started = client()
    row = started.post("/score", params=query, content=pixels.tobytes()).json()
    shown = rgb if channels > 1 else np.repeat(pixels, 3, 2)
    same = started.post("/score?class=bolt", content=encoded(shown)).json()
    assert row["score"] == pytest.approx(same["score"], rel=1e-4)
    assert (row["verdict"], row["class"], row["path"]) == (same["verdict"], "bolt", "")


def test_a_map_is_the_overlay_or_the_map_itself(client: Answering, tiny_model: FittedModel, photo: bytes) -> None:
    started = client()
    (expected,) = tiny_model.predict([picture()], "nut")
    overlay = started.post("/score?class=nut&map=png", content=photo)
    assert overlay.headers["content-type"] == "image/png"
    decoded = cv2.imdecode(np.frombuffer(overlay.content, np.uint8), cv2.IMREAD_COLOR)
    assert decoded.shape == picture().shape
    values = started.post("/score?class=nut&map=npy", content=photo)
    assert np.load(io.BytesIO(values.content)) == pytest.approx(expected.anomaly_map, rel=1e-3)
    accept = {"Accept": "application/json"}
    row = started.post("/score?class=nut&map=png&regions", content=photo, headers=accept).json()
    assert base64.b64decode(row["map"]) == overlay.content
    assert isinstance(row["regions"], list)
    files = [("a", ("a.png", photo)), ("b", ("b.png", b"no image"))]
    assert started.post("/score?class=nut&map=npy", files=files).status_code == 400
    rows = started.post("/score?class=nut&map=npy", files=files, headers=accept).json()
    assert (base64.b64decode(rows[0]["map"]), rows[1]["map"]) == (values.content, None)


def png_that_claims(width: int, height: int) -> bytes:
    """A complete PNG of a few bytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"\0")), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize(
    ("query", "body", "status", "reason"),
    [
        ("", b"no image", 422, "not an image: expected PNG"),
        ("", b"", 400, "the body is empty"),
        ("", png_that_claims(10_000, 10_001), 422, "claims 10000×10001 pixels, more than 100000000"),
        ("class=nail", b"x", 422, "the model knows no class 'nail': choose nut, bolt"),
        ("map=gif", b"x", 400, "map=gif: choose from png, npy"),
        ("regions=yes", b"x", 400, "regions=yes: write regions, or regions=0"),
        ("clas=nut", b"x", 400, "no parameter 'clas': choose from class, regions"),
        ("width=4", b"x", 400, "raw pixels need width and height"),
        ("width=4&height=-2", b"x", 400, "raw pixels need width and height"),
        ("width=4&height=2&channels=2", b"x", 400, "channels=2: choose from 1, 3, 4"),
        ("width=4&height=2", b"x" * 23, 400, "23 bytes are not the 4×2 pixels of 3 bytes"),
        ("map=png", b"no image", 422, "not an image: expected PNG"),
    ],
)
def test_what_cannot_be_scored_is_told_in_a_line(
    client: Answering, query: str, body: bytes, status: int, reason: str
) -> None:
    answer = client().post(f"/score?{query}", content=body)
    assert answer.status_code == status
    assert answer.json()["error"].startswith(reason)


def test_a_form_that_is_damaged_or_holds_no_file_is_refused(client: Answering) -> None:
    started = client(limits={"max_photos": 2})
    for kind in ("multipart/form-data", "multipart/form-data; boundary=b"):
        assert started.post("/score", content=b"x", headers={"Content-Type": kind}).status_code == 400
    three = [("p", (f"{i}.png", b"x")) for i in range(3)]
    assert "Maximum number of files is 2" in started.post("/score", files=three).json()["error"]


def test_a_body_is_refused_where_it_is_too_large(client: Answering, photo: bytes, watched: Watched) -> None:
    started = client(limits={"max_bytes": len(photo)})
    assert started.post("/score?class=nut", content=photo).status_code == 200
    assert started.post("/score?class=nut", content=photo + b"x").status_code == 413
    chunks = iter([photo, b"x"])  # without a length
    assert started.post("/score?class=nut", content=chunks).status_code == 413
    assert started.post("/score?class=nut", files={"a": photo}).status_code == 413
    assert sum(watched.sizes) == 1


def test_wrong_methods_and_addresses_are_refused(client: Answering) -> None:
    started = client()
    answer = started.get("/score")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert started.post("/model").status_code == 405
    assert started.get("/scores").status_code == 404
    assert started.get("/scores").json() == {"error": "Not Found"}


def test_only_who_has_the_token_may_score(client: Answering, photo: bytes) -> None:
    started = client(token="säcret")
    right = {"Authorization": "Bearer säcret".encode()}
    for headers in ({}, {"Authorization": "Bearer secret"}, {"Authorization": "Basic säcret".encode()}):
        answer = started.post("/score?class=nut", content=photo, headers=headers)
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, 'Bearer realm="mambaad"')
        assert [started.get(path, headers=headers).status_code for path in ("/model", "/metrics")] == [401, 401]
    assert started.post("/score?class=nut", content=photo, headers=right).status_code == 200
    assert started.get("/metrics", headers=right).status_code == 200
    assert [started.get(path).status_code for path in ("/", "/page.js", "/health")] == [200, 200, 200]
    assert started.get("/model", headers={**right, "Host": "line3.example"}).status_code == 200


def test_no_host_header_opens_a_path_that_needs_the_token(
    client: Answering, photo: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Starlette before 1.0.1 made the URL of such a header end its path in a query."""
    started = client(token="secret")
    from starlette.datastructures import URL
    from starlette.requests import Request

    def url(request: Request) -> URL:
        return URL(f"http://{request.headers['host']}{request.scope['path']}")

    monkeypatch.setattr(Request, "url", property(url))
    assert started.get("/model", headers={"Host": "x/health?"}).status_code == 401
    assert started.post("/score", content=photo, headers={"Host": "x/health?"}).status_code == 401
    page = started.get("/page.css", headers={"Host": "x/?"})
    assert (page.status_code, page.headers["content-type"]) == (200, "text/css; charset=utf-8")


def test_without_a_token_only_names_of_this_machine_are_answered(client: Answering) -> None:
    """A page on the web may have a name that leads to 127.0.0.1."""
    started = client()
    for host, status in (("localhost:8000", 200), ("[::1]:8000", 200), ("evil.example", 421), ("", 421)):
        assert started.get("/model", headers={"Host": host}).status_code == status, host


def test_without_a_token_no_page_of_another_site_is_answered(client: Answering, photo: bytes, watched: Watched) -> None:
    """A page may send a photo to any address without being allowed to read the answer (mode: no-cors)."""
    started = client()
    host = {"Host": "localhost:8000"}
    for origin in ("https://evil.example", "http://localhost:9000", "https://localhost:8000", "null"):
        answer = started.post("/score?class=nut", content=photo, headers={**host, "Origin": origin})
        assert answer.status_code == 421, origin
        assert "no page of another site" in answer.json()["error"]
    assert watched.sizes == []
    own = {**host, "Origin": "http://localhost:8000"}
    assert started.post("/score?class=nut", content=photo, headers=own).status_code == 200
    with_token = client(token="secret")
    headers = {"Origin": "https://line3.example", "Authorization": "Bearer secret"}
    assert with_token.post("/score?class=nut", content=photo, headers=headers).status_code == 200


def test_model_tells_facts_and_metrics_count(client: Answering, tiny_model: FittedModel, photo: bytes) -> None:
    started = client()
    facts = started.get("/model").json()
    assert facts["products"]["nut"]["threshold"] == pytest.approx(tiny_model.products["nut"].threshold)
    assert (facts["model"], facts["products"]["bolt"]["good_images"]) == (None, 8)
    rows = [started.post("/score?class=nut", content=photo).json() for _ in range(3)]
    started.post("/score?class=nut", content=b"no image")
    lines = started.get("/metrics").text.splitlines()
    assert 'mambaad_requests_total{path="/score",status="200"} 3' in lines
    assert 'mambaad_errors_total{status="422"} 1' in lines
    assert f'mambaad_verdicts_total{{verdict="{rows[0]["verdict"]}"}} 3' in lines
    assert {"mambaad_images_total 4", "mambaad_batches_total 4", "mambaad_queue_length 0"} <= set(lines)
    assert {"mambaad_score_seconds_count 3", 'mambaad_score_seconds_bucket{le="+Inf"} 3'} <= set(lines)


def test_requests_that_come_together_reach_the_model_together(
    client: Answering, watched: Watched, photo: bytes
) -> None:
    started = client(BatchOptions(batch=6, wait=20.0))
    barrier = threading.Barrier(6)

    def post(number: int) -> dict[str, Any]:
        barrier.wait()
        row: dict[str, Any] = started.post(f"/score?class=nut&name={number}", content=photo).json()
        return row

    with ThreadPoolExecutor(6) as pool:
        rows = list(pool.map(post, range(6)))
    assert watched.sizes == [6]
    assert [row["path"] for row in rows] == list("012345")


def test_a_full_queue_answers_503_and_says_when_to_come_again(
    client: Answering, watched: Watched, photo: bytes
) -> None:
    started = client(BatchOptions(batch=1, queue=2))
    watched.may_go_on.clear()
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(started.post, "/score?class=nut", content=photo)
        assert watched.begun.wait(60)  # it is with the model, and no longer in the queue
        three = [("p", (f"{i}.png", photo)) for i in range(3)]
        assert started.post("/score?class=nut", files=three).status_code == 503
        waiting = [pool.submit(started.post, "/score?class=nut", content=photo) for _ in range(2)]
        while "mambaad_queue_length 2" not in started.get("/metrics").text:
            assert not first.done()
        answer = started.post("/score?class=nut", content=photo)
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) >= 1
        watched.may_go_on.set()
        assert [one.result().status_code for one in (first, *waiting)] == [200, 200, 200]
    assert started.post("/score?class=nut", content=photo).status_code == 200


def test_a_photo_at_which_the_model_fails_does_not_take_others_with_it(
    client: Answering, watched: Watched, photo: bytes
) -> None:
    said: list[str] = []
    started = client(BatchOptions(batch=3, wait=20.0), say=said.append)
    bodies = [photo, encoded(0 * picture()), photo]
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda body: started.post("/score?class=nut", content=body), bodies))
    assert [one.status_code for one in answers] == [200, 500, 200]
    assert answers[1].json()["error"] == "cannot be scored: RuntimeError: the model fails at black photos"
    assert said == ["a photo cannot be scored: RuntimeError: the model fails at black photos"]
    assert "mambaad_failures_total 1" in started.get("/metrics").text.splitlines()


def test_a_new_model_is_taken_up_between_two_batches(
    client: Answering, tiny_model: FittedModel, tmp_path: Path, photo: bytes
) -> None:
    strict = with_products(tiny_model, *(calibrated(product, [-1e9]) for product in tiny_model.products.values()))
    strict.save(tmp_path / "strict.safetensors")
    second = mambaad_cli.load(tmp_path / "strict.safetensors")
    renewed: list[Any] = []
    said: list[str] = []
    started = client(renewed=lambda: renewed.pop() if renewed else None, say=said.append)
    assert started.post("/score?class=nut", content=photo).json()["model"] is None
    renewed.append(second.scorer)
    row = started.post("/score?class=nut", content=photo).json()
    assert (row["model"], row["verdict"]) == (second.sha256, "anomalous")
    assert started.get("/model").json()["model"] == second.sha256
    assert said == [f"the model was replaced: photos are scored by {second.sha256} from now on"]


def test_an_overlay_needs_a_threshold(
    client: Answering, watched: Watched, tiny_model: FittedModel, photo: bytes
) -> None:
    bare = with_products(tiny_model, replace(tiny_model.products["nut"], calibration=None))
    watched.scorer = bare.scorer
    answer = client().post("/score?map=png", content=photo)
    assert answer.status_code == 422
    assert "an overlay needs a threshold" in answer.json()["error"]
    assert client().post("/score?map=npy", content=photo).status_code == 200
