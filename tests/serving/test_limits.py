"""What keeps a server from being held up or filled."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from mambaad_cli.serving.batching import Batcher, BatchOptions, Job
from mambaad_cli.serving.metrics import Metrics
from mambaad_cli.serving.photos import Photo, Reader
from tests.serving.conftest import Answering, Watched, needs_the_extra


def test_a_body_that_does_not_come_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    needs_the_extra()
    from starlette.exceptions import HTTPException
    from starlette.requests import Request

    from mambaad_cli.serving import asked

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(60)
        raise AssertionError

    async def ask() -> None:
        scope = {"type": "http", "method": "POST", "path": "/score", "headers": [], "query_string": b""}
        await asked.photos_of(asked.Body(Request(scope, receive), asked.Limits()), asked.Asked())

    monkeypatch.setattr(asked, "BODY_SECONDS", 0.05)
    with pytest.raises(HTTPException) as refused:
        asyncio.run(ask())
    assert refused.value.status_code == 408


def post(app: Any, query: str, messages: list[dict[str, Any]], **headers: str) -> tuple[int, int]:
    """The status of an answer, and how many of the messages of the body had been taken when it came."""
    left, answered = list(messages), []

    async def receive() -> dict[str, Any]:
        assert left, "the body was read to its end"
        return left.pop(0)

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            answered.append((message["status"], len(messages) - len(left)))

    named = {"host": "localhost"} | headers
    scope = {"type": "http", "method": "POST", "path": "/score", "query_string": query.encode()}
    scope["headers"] = [(name.replace("_", "-").encode(), value.encode()) for name, value in named.items()]
    asyncio.run(app(scope, receive, send))
    return answered[0]


@pytest.mark.parametrize(
    ("query", "headers", "status"),
    [
        ("clas=nut", {}, 400),
        ("class=nail", {}, 422),
        ("", {"content_length": "1000"}, 413),
        ("", {}, 413),  # without a length: found at the second part
        ("width=4&height=2", {"content_type": "multipart/form-data; boundary=b"}, 400),
        ("", {"content_type": "multipart/form-data; boundary=b"}, 400),
    ],
)
def test_an_error_is_answered_once_the_client_has_sent_its_body(
    client: Answering, query: str, headers: dict[str, str], status: int
) -> None:
    """A client that still sends, as urllib does, would see a broken pipe and no answer."""
    parts = [{"type": "http.request", "body": b"x" * 60, "more_body": i < 4} for i in range(5)]
    assert post(client(limits={"max_bytes": 100}).app, query, parts, **headers) == (status, 5)


def test_a_body_that_has_ended_is_not_read_on(client: Answering) -> None:
    parts = [{"type": "http.request", "body": b"no image", "more_body": False}]
    assert post(client().app, "", parts) == (422, 1)
    assert post(client().app, "clas=nut", [{"type": "http.disconnect"}]) == (400, 1)


def test_photos_of_a_form_whose_overlays_are_drawn_share_the_limit_of_pixels(client: Answering, photo: bytes) -> None:
    """Each is held at its full size until all are scored."""
    started = client(limits={"max_pixels": 2 * 80 * 96})
    json = {"Accept": "application/json"}
    for count, query, verdict in ((2, "&map=png", ""), (3, "&map=png", "error"), (3, "&map=npy", ""), (3, "", "")):
        files = [("p", (f"{i}.png", photo)) for i in range(count)]
        rows = started.post(f"/score?class=nut{query}", files=files, headers=json).json()
        assert {row["verdict"] == "error" for row in rows} == {verdict == "error"}, (count, query)
        assert all(row["error"] == "claims 96×80 pixels, more than 5120" for row in rows if verdict)


def test_the_bodies_that_are_held_at_once_are_limited_in_bytes(
    client: Answering, watched: Watched, photo: bytes
) -> None:
    needs_the_extra()
    from mambaad_cli.serving.app import HELD_BODIES

    started = client(BatchOptions(batch=1), {"max_bytes": len(photo)})
    watched.may_go_on.clear()
    with ThreadPoolExecutor(HELD_BODIES) as pool:
        held = [pool.submit(started.post, "/score?class=nut", content=photo) for _ in range(HELD_BODIES)]
        while f"mambaad_queue_length {HELD_BODIES - 1}" not in started.get("/metrics").text:
            assert not any(one.done() for one in held)
        assert started.post("/score?class=nut", content=photo).status_code == 503
        watched.may_go_on.set()
        assert {one.result().status_code for one in held} == {200}
    assert started.post("/score?class=nut", content=photo).status_code == 200


@pytest.mark.parametrize("closed", [False, True])
def test_photos_of_cancelled_requests_are_not_scored_and_keep_nobody_waiting(
    watched: Watched, photo: bytes, closed: bool
) -> None:
    batcher = Batcher(watched, BatchOptions(batch=2, wait=0.0), Metrics())
    watched.may_go_on.clear()
    jobs = [Job(Photo("", photo), Reader("nut")) for _ in range(5)]
    batcher.put(jobs[:1])
    assert watched.begun.wait(60)
    batcher.put(jobs[1:])
    assert not jobs[0].answer.cancel()  # the model has it
    assert all(jobs[i].answer.cancel() for i in (1, 2, 3))  # a whole batch, and one of the next
    closing = threading.Thread(target=batcher.close)
    if closed:
        closing.start()
    watched.may_go_on.set()
    assert [jobs[i].answer.result(30).prediction.class_name for i in (0, 4)] == ["nut", "nut"]
    if not closed:
        closing.start()
    closing.join(30)
    assert not closing.is_alive()
    assert watched.sizes == [1, 1]


def test_a_body_without_a_length_counts_what_it_holds_once_it_is_read(
    client: Answering, watched: Watched, photo: bytes
) -> None:
    started = client(BatchOptions(batch=1), {"max_bytes": 2 * len(photo)})
    watched.may_go_on.clear()
    held: list[Any] = []
    with ThreadPoolExecutor(10) as pool:  # of half the largest size, they are fewer bytes than may be held at once
        try:
            for waiting in range(10):  # the first one is with the model
                held.append(pool.submit(started.post, "/score?class=nut", content=iter([photo])))
                assert watched.begun.wait(60)
                while f"mambaad_queue_length {waiting}" not in started.get("/metrics").text:
                    assert not any(one.done() for one in held)
        finally:
            watched.may_go_on.set()
        assert {one.result().status_code for one in held} == {200}
