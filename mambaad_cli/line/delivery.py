"""Rows on their way to other programs: a command, a web address. Scoring never waits for them."""

import hashlib
import hmac
import os
import queue
import shlex
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from mambaad_cli import MambaADError

SECRET = "MAMBAAD_WEBHOOK_SECRET"  # the environment variable
SIGNATURE = "X-Mambaad-Signature-256"
TIMEOUT = 10.0  # seconds for an answer of a web address
EXEC_TIMEOUT = 60.0  # seconds for a command
MOST = 10_000  # rows that wait
ATTEMPTS = 8  # with pauses of 1, 2, 4, … 64 s between them
TRY_AGAIN = (408, 425, 429)  # answers below 500 that may be better later

Send: TypeAlias = Callable[[bytes], None]
Say: TypeAlias = Callable[[str], None]


class Refused(Exception):
    """A row was not taken, and would not be if it were sent again."""


class Delivery:
    """Sends rows in a thread of its own, in order. A row that fails is sent again after growing pauses.

    What cannot be delivered is told to `say`, a line each; the row itself is in the file of rows.
    """

    def __init__(self, name: str, send: Send, say: Say, attempts: int = ATTEMPTS, pause: float = 1.0) -> None:
        self.name, self.send, self.say, self.attempts, self.pause = name, send, say, attempts, pause
        self._rows: queue.Queue[bytes | None] = queue.Queue(MOST)
        self._ending = threading.Event()
        self._left_out = self._lost = 0
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def put(self, row: bytes) -> None:
        """Let a row be sent; it is left out where too many wait already."""
        try:
            self._rows.put_nowait(row)
        except queue.Full:
            if not self._left_out:
                self.say(f"{self.name}: {MOST} rows wait already: others are left out")
            self._left_out += 1

    def close(self, seconds: float = 10.0) -> None:
        """Wait so long for the rows that are left, each of which is sent once more, and tell how many remain."""
        self._ending.set()
        until = time.monotonic() + seconds
        while self._rows.unfinished_tasks and time.monotonic() < until and self._thread.is_alive():
            time.sleep(0.02)
        if left := self._rows.unfinished_tasks + self._left_out + self._lost:
            self.say(f"{self.name}: {left} rows were not delivered")

    def _work(self) -> None:
        while True:
            row = self._rows.get()
            try:
                self._deliver(row or b"")
            finally:
                self._rows.task_done()

    def _deliver(self, row: bytes) -> None:
        for attempt in range(self.attempts):
            try:
                self.send(row)
                return
            except Refused as error:
                self.say(f"{self.name}: {error}")
                return
            except (OSError, HTTPException) as error:
                reason = str(getattr(error, "reason", error)) or type(error).__name__
            if attempt + 1 == self.attempts or self._ending.wait(self.pause * 2**attempt):
                break
        if self._ending.is_set():
            self._lost += 1  # `close` tells
            return
        self.say(f"{self.name}: a row was not delivered: {reason}")


def command(line: str) -> tuple[str, Send]:
    """A program that gets the row on its standard input. No shell sees the line, nor anything that is in the row.

    Raises MambaADError for a line that is empty or whose quotes do not match.
    """
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise MambaADError(f"--exec {line!r}: {error}") from None
    if not words:
        raise MambaADError("--exec needs a command")

    def send(row: bytes) -> None:
        try:
            done = subprocess.run(words, input=row, timeout=EXEC_TIMEOUT, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Refused(getattr(error, "strerror", None) or f"took longer than {EXEC_TIMEOUT:g} s") from None
        if done.returncode:
            raise Refused(f"ended with status {done.returncode}")

    return f"--exec {words[0]}", send


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A row goes to the address that was given, and to no other."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def webhook(url: str) -> tuple[str, Send]:
    """POST the row as JSON to an http or https address.

    With a secret in the environment, the header X-Mambaad-Signature-256 is `sha256=` and the HMAC-SHA256 (RFC 2104) of
    the body, in hex. Messages name the host alone, because the rest of an address may hold a secret.

    Raises MambaADError for any other address.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if host is None or parts.scheme not in ("http", "https") or any(c <= " " for c in url):
        raise MambaADError("--webhook takes an address such as https://example.com/rows: http or https alone")
    if parts.username is not None:
        raise MambaADError(f"--webhook takes no user or password in the address: sign the rows with {SECRET}")
    secret = os.environ.get(SECRET, "").encode()
    opener = urllib.request.build_opener(_NoRedirect)

    def send(row: bytes) -> None:
        headers = {"Content-Type": "application/json", "User-Agent": "mambaad"}
        if secret:
            headers[SIGNATURE] = f"sha256={hmac.new(secret, row, hashlib.sha256).hexdigest()}"
        try:
            with opener.open(urllib.request.Request(url, row, headers, method="POST"), timeout=TIMEOUT):
                pass
        except urllib.error.HTTPError as error:
            error.close()
            if error.code < 500 and error.code not in TRY_AGAIN:
                raise Refused(f"answered {error.code}: a row was not delivered") from None
            raise OSError(f"answered {error.code}") from None

    return f"--webhook {parts.scheme}://{host}", send
