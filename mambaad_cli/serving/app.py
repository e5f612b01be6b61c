"""The addresses that a server answers, as a Starlette application."""

import asyncio
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mambaad_cli import MambaADError, __version__
from mambaad_cli.inspection.predict import check_class
from mambaad_cli.inspection.rows import json_line
from mambaad_cli.serving import answers, metrics
from mambaad_cli.serving.asked import Asked, Body, Limits, body_length, is_form, photos_of
from mambaad_cli.serving.batching import Batcher, Closed, Job, QueueFull, Scored
from mambaad_cli.serving.guard import Guard
from mambaad_cli.serving.photos import Photo, Reader

HERE = Path(__file__).parent
POLICY = (  # the page may use what this server sends, and nothing else
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
PAGES = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
HELD_BODIES = 8  # bodies of the largest size that are held at once, together
Result = TypeVar("Result")


class Service:
    """What requests are answered with."""

    def __init__(self, batcher: Batcher, limits: Limits) -> None:
        self.batcher, self.limits = batcher, limits
        self.bytes_held = 0  # of all bodies that are being read, or whose photos are being scored
        self.draws = ThreadPoolExecutor(2, "draw")  # overlays and rows

    async def score(self, request: Request) -> Response:
        """The rows of the photos in a request, or the map of one."""
        body = Body(request, self.limits)
        try:
            asked = Asked.of(request.query_params)
            check_class(self.batcher.scorer.products, asked.class_name)
            length = body_length(request, self.limits)
            self.batcher.check_room()
            if self.bytes_held + length > HELD_BODIES * self.limits.max_bytes:
                raise QueueFull(1)
            self.bytes_held += length
            try:
                photos = await photos_of(body, asked)
                self.bytes_held += body.bytes - length  # a body without a length may have had any
                length = body.bytes
                return await self._answer(request, photos, asked)
            finally:
                self.bytes_held -= length
        except (HTTPException, MambaADError):
            await body.discard()
            raise

    async def _answer(self, request: Request, photos: list[Photo], asked: Asked) -> Response:
        wants_json = "application/json" in request.headers.get("accept", "")
        if asked.map and not wants_json and len(photos) > 1:
            raise HTTPException(400, "a map is of one photo: send one, or ask with the header Accept: application/json")
        scored = await self._scored(photos, asked)
        no_score = all(one.prediction.verdict == "error" for one in scored)
        if asked.map and not wants_json and not no_score:
            content = await self._drawn(lambda: answers.map_of(scored[0].prediction, asked.map))
            return Response(content, media_type=answers.MAP_TYPES[asked.map])
        rows = await self._drawn(lambda: [_row(one, photo, asked) for one, photo in zip(scored, photos, strict=True)])
        text = _json(rows) if is_form(request) else json_line(rows[0])
        status = 200 if not no_score else 500 if any(one.broken for one in scored) else 422
        return Response(text, status, media_type="application/json")

    async def _scored(self, photos: list[Photo], asked: Asked) -> list[Scored]:
        # the pictures of a request are held, at their full size, until its overlays are drawn
        share = len(photos) if asked.map == "png" else 1
        reader = Reader(asked.class_name, asked.map == "png", self.limits.max_pixels // share)
        jobs = [Job(photo, reader, bool(asked.map)) for photo in photos]
        self.batcher.put(jobs)
        return await asyncio.gather(*(asyncio.wrap_future(job.answer) for job in jobs))

    async def _drawn(self, draw: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self.draws, draw)

    async def health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def model(self, request: Request) -> Response:
        scorer, options = self.batcher.scorer, self.batcher.options
        facts = {
            "model": scorer.sha256 or None,
            "version": __version__,
            "products": answers.facts_of(scorer.products),
            "batch": options.batch,
            "queue": options.queue,
            "max_bytes": self.limits.max_bytes,
            "max_pixels": self.limits.max_pixels,
        }
        return Response(json_line(facts), media_type="application/json")

    async def metrics(self, request: Request) -> Response:
        batcher = self.batcher
        text = batcher.metrics.text(batcher.waiting, batcher.scorer.sha256)
        return Response(text, headers={"Content-Type": metrics.CONTENT_TYPE})


def _row(scored: Scored, photo: Photo, asked: Asked) -> dict[str, Any]:
    if asked.map:
        return answers.row_with_map(scored, photo.name, asked.regions, asked.map)
    return answers.row_of(scored, photo.name, asked.regions)


def _json(rows: list[dict[str, Any]]) -> str:
    """A list of rows, one a line."""
    return "[" + ",\n ".join(json_line(row).rstrip() for row in rows) + "]\n"


async def page(request: Request) -> Response:
    """The page for people, and the files that it needs."""
    name, kind = PAGES[request.scope["path"]]
    headers = {
        "Content-Security-Policy": POLICY,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }
    return Response((HERE / name).read_bytes(), headers=headers, media_type=kind)


async def refused(request: Request, error: Exception) -> Response:
    """An error that the client can mend, as JSON."""
    if isinstance(error, HTTPException):
        return _error(error.detail, error.status_code, dict(error.headers or {}))
    if isinstance(error, QueueFull):
        return _error(str(error), 503, {"Retry-After": str(error.retry_after)})
    if isinstance(error, Closed):
        return _error(str(error), 503, {"Retry-After": "5", "Connection": "close"})
    if isinstance(error, ClientDisconnect):
        return _error("the client has gone", 400, {})  # nobody sees it; it is counted
    return _error(str(error), 422, {})


async def failed(request: Request, error: Exception) -> Response:
    """What nobody expected: it is told to the client in a line, and its traceback to who runs the server."""
    return _error(f"{type(error).__name__}: {error}", 500, {})


def _error(reason: str, status: int, headers: dict[str, str]) -> Response:
    text = json.dumps({"error": reason}) + "\n"
    return Response(text, status, headers, media_type="application/json")


def build_app(batcher: Batcher, limits: Limits | None = None, token: str = "") -> Starlette:
    """The application. token: that each request must bring; empty: none is needed, and only localhost is answered."""
    service = Service(batcher, limits or Limits())
    routes = [
        Route("/score", service.score, methods=["POST"]),
        Route("/health", service.health),
        Route("/model", service.model),
        Route("/metrics", service.metrics),
        *(Route(path, page) for path in PAGES),
    ]
    return Starlette(
        routes=routes,
        middleware=[Middleware(Guard, token=token, metrics=batcher.metrics)],
        exception_handlers={
            **dict.fromkeys((HTTPException, MambaADError, ClientDisconnect), refused),
            Exception: failed,
        },
    )
