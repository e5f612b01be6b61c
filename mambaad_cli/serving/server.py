"""A server that answers until it gets SIGTERM or Ctrl-C, and finishes what it has accepted."""

import signal
import socket
from typing import Any

import uvicorn
from starlette.applications import Starlette

from mambaad_cli import MambaADError

BACKLOG = 128  # connections that wait to be accepted
KEEP_ALIVE = 75  # seconds that an idle connection stays open
GRACE = 120  # seconds that requests have to finish once the server is to end


def bound(host: str, port: int) -> socket.socket:
    """A socket of an address, which refuses connections until `run` listens. Raises MambaADError where it is taken."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, protocol)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError as error:
        raise MambaADError(f"cannot listen on {host} port {port}: {error.strerror or error}") from None
    return found


def address_of(listening: socket.socket) -> str:
    """Such as http://127.0.0.1:8000."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run(app: Starlette, listening: socket.socket) -> None:
    """Answer requests. SIGTERM ends this in order; Ctrl-C does too, and then raises KeyboardInterrupt."""
    config = uvicorn.Config(
        app,
        access_log=False,
        log_config=None,
        log_level="warning",
        lifespan="off",
        ws="none",
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=GRACE,
    )
    before = signal.signal(signal.SIGTERM, _ended)  # uvicorn raises the signal again once it has ended
    try:
        uvicorn.Server(config).run(sockets=[listening])
    finally:
        signal.signal(signal.SIGTERM, before)


def _ended(number: int, frame: Any) -> None:
    """SIGTERM has done what it is for."""
