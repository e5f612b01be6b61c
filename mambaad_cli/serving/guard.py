"""Who may ask: the token, and the names that a server on the loopback answers to."""

import hmac
import ipaddress
import time
from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mambaad_cli.serving.metrics import Metrics

TOKEN = "MAMBAAD_TOKEN"  # the environment variable
OPEN_PATHS = ("/", "/page.css", "/page.js", "/health")  # they tell nothing of photos or the model
COUNTED_PATHS = (*OPEN_PATHS, "/score", "/model", "/metrics")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address.

    >>> is_loopback("127.0.0.1"), is_loopback("::1"), is_loopback("localhost"), is_loopback("0.0.0.0")
    (True, True, True, False)
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def host_of(header: str) -> str:
    """The host of a Host header, without its port.

    >>> host_of("localhost:8000"), host_of("[::1]:8000"), host_of("127.0.0.1")
    ('localhost', '::1', '127.0.0.1')
    """
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0]


class Guard:
    """Lets through who has the token, and counts all requests.

    Without a token only names of the loopback are answered, and no page but that of this server: a page on the web can
    reach it neither through a name of its own that leads to this machine, nor by a request across sites.
    """

    def __init__(self, app: ASGIApp, token: str, metrics: Metrics) -> None:
        self.app, self.token, self.metrics = app, token, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.monotonic(), 500

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await (self._refusal(Request(scope)) or self.app)(scope, receive, noting)
        finally:
            path = scope["path"] if scope["path"] in COUNTED_PATHS else "other"
            self.metrics.count_request(path, status, time.monotonic() - began)

    def _refusal(self, request: Request) -> Response | None:
        if not self.token:
            host = request.headers.get("host", "")
            same_site = all(origin == f"http://{host}" for origin in request.headers.getlist("origin"))
            if is_loopback(host_of(host)) and same_site:
                return None
            reason = f"only localhost is answered without a token, and no page of another site: set {TOKEN}"
            return JSONResponse({"error": reason}, 421)
        # Not request.url.path: Starlette built it from the Host header, too, before 1.0.1 (CVE-2026-48710).
        if request.scope["path"] in OPEN_PATHS or _holds(self.token, request.headers.getlist("authorization")):
            return None
        return JSONResponse({"error": "a token is needed"}, 401, {"WWW-Authenticate": 'Bearer realm="mambaad"'})


def _holds(token: str, headers: Sequence[str]) -> bool:
    """Whether an Authorization header holds the token; compared in constant time."""
    scheme, _, given = (headers[0] if len(headers) == 1 else "").partition(" ")
    same = hmac.compare_digest(given.strip().encode("latin-1"), token.encode())
    return same and scheme.lower() == "bearer"
