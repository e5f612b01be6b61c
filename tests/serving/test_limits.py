"""What keeps a server from being held up or filled."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from mambaad_cli.serving.batching import BatchOptions
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
        await asked.photos_of(Request(scope, receive), asked.Asked(), asked.Limits())

    monkeypatch.setattr(asked, "BODY_SECONDS", 0.05)
    with pytest.raises(HTTPException) as refused:
        asyncio.run(ask())
    assert refused.value.status_code == 408


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
