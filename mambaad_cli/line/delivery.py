"""Rows on their way to other programs: a command, a web address. Scoring never waits for them."""

import base64
import binascii
import hashlib
import hmac
import os
import queue
import shlex
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from typing import Any, TypeAlias
from urllib.parse import SplitResult, urlsplit

from mambaad_cli import MambaADError

SECRET = "MAMBAAD_WEBHOOK_SECRET"  # the environment variable
ENCODED_SECRET = "whsec_"  # before the Base64 of a secret, as Standard Webhooks has it
SIGNATURE = "X-Mambaad-Signature-256"
ANSWER_TIMEOUT = 10.0  # seconds, of a web address
EXEC_TIMEOUT = 60.0  # seconds, of a command
MAX_WAITING = 10_000  # rows
ATTEMPTS = 8  # with pauses of 1, 2, 4, … 64 s between them
TRY_AGAIN = (408, 425, 429)  # answers below 500 that may be better later

Send: TypeAlias = Callable[[bytes], None]
Say: TypeAlias = Callable[[str], None]


class Refused(Exception):
    """A row was not accepted, and would not be if it were sent again."""


class Delivery:
    """Sends rows in a thread of its own, in order. A row that fails is sent again after growing pauses.

    What cannot be delivered is reported to `say`, a line each; the row itself is in the file of rows.
    """

    def __init__(self, name: str, send: Send, say: Say, attempts: int = ATTEMPTS, pause: float = 1.0) -> None:
        self.name, self.send, self.say, self.attempts, self.pause = name, send, say, attempts, pause
        self._rows: queue.Queue[bytes] = queue.Queue(MAX_WAITING)
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
                self.say(f"{self.name}: {MAX_WAITING} rows wait already: others are left out")
            self._left_out += 1

    def close(self, seconds: float = 10.0) -> None:
        """Wait at most `seconds` for the waiting rows, each of which is sent once more; report how many remain."""
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
                self._deliver(row)
            except Exception:  # of `say`, such as a closed stderr: later rows are delivered all the same
                self._lost += 1
            finally:
                self._rows.task_done()

    def _deliver(self, row: bytes) -> None:
        reason = ""
        for attempt in range(self.attempts):
            try:
                self.send(row)
                return
            except Refused as error:
                self.say(f"{self.name}: {error}")
                return
            except Exception as error:  # whatever it is, the thread goes on
                reason = _in_words(error)
            if attempt + 1 == self.attempts or self._ending.wait(self.pause * 2**attempt):
                break
        if self._ending.is_set():
            self._lost += 1  # `close` reports it
            return
        self.say(f"{self.name}: a row was not delivered: {reason}")


def _in_words(error: Exception) -> str:
    if isinstance(error, OSError | HTTPException):
        return str(getattr(error, "reason", error)) or type(error).__name__
    return f"{type(error).__name__}: {error}"


# ---- a command ----


def split_words(line: str) -> list[str]:
    """The words of a command, of which quoted ones may hold spaces. On Windows a backslash is a part of a path.

    Raises ValueError for quotes that do not match.
    """
    if sys.platform != "win32":
        return shlex.split(line)
    words = shlex.split(line, posix=False)
    return [word[1:-1] if len(word) > 1 and word[0] == word[-1] and word[0] in "'\"" else word for word in words]


def command(line: str) -> tuple[str, Send]:
    """A program that gets the row on its standard input. No shell sees the line, nor anything that is in the row.

    The program does not get the secret of the webhook. Raises MambaADError for a line that is empty or whose quotes do
    not match.
    """
    try:
        words = split_words(line)
    except ValueError as error:
        raise MambaADError(f"--exec {line!r}: {error}") from None
    if not words:
        raise MambaADError("--exec needs a command")

    def send(row: bytes) -> None:
        environment = {name: value for name, value in os.environ.items() if name != SECRET}
        try:
            done = subprocess.run(words, input=row, timeout=EXEC_TIMEOUT, check=False, env=environment)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Refused(getattr(error, "strerror", None) or f"took longer than {EXEC_TIMEOUT:g} s") from None
        if done.returncode:
            raise Refused(f"ended with status {done.returncode}")

    return f"--exec {words[0]}", send


# ---- a web address ----


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A row goes to the address that was named, and to no other."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def webhook(url: str, say: Say = lambda line: None) -> tuple[str, Send]:
    """POST the row as JSON to an http or https address.

    The headers are those of Standard Webhooks: webhook-id, the same at each attempt, webhook-timestamp and, with a
    secret in the environment, webhook-signature. X-Mambaad-Signature-256, `sha256=` and the HMAC-SHA256 of the body
    alone in hex, is that of mambaad 0.2. Messages name the host alone, because the rest of an address may hold a
    secret.

    say: is told where the host has no address now; it may have one later, so that is no error.

    Raises MambaADError for any other address, and for a secret that is no Base64 after `whsec_`.
    """
    parts = _checked(url)
    name = f"--webhook {parts.scheme}://{parts.hostname}"
    secret = os.environ.get(SECRET, "")
    key = _key(secret)
    opener = urllib.request.build_opener(_NoRedirect)
    if parts.scheme not in urllib.request.getproxies():
        try:
            socket.getaddrinfo(parts.hostname, parts.port or parts.scheme, type=socket.SOCK_STREAM)
        except OSError as error:
            say(f"{name}: the host is not known now ({error.strerror}): rows are sent all the same")

    def send(row: bytes) -> None:
        request = urllib.request.Request(url, row, _headers(row, secret, key), method="POST")
        try:
            with opener.open(request, timeout=ANSWER_TIMEOUT):
                pass
        except urllib.error.HTTPError as error:
            error.close()
            if error.code < 500 and error.code not in TRY_AGAIN:
                raise Refused(f"answered {error.code}: a row was not delivered") from None
            raise OSError(f"answered {error.code}") from None

    return name, send


def _checked(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        (parts.hostname or "").encode("idna")  # as it is looked up
        host, _ = parts.hostname, parts.port
    except ValueError:  # UnicodeError is one
        host = None
    if host is None or parts.scheme not in ("http", "https") or any(c <= " " for c in url):
        raise MambaADError("--webhook takes an address such as https://example.com/rows: http or https alone")
    if parts.username is not None:
        raise MambaADError(f"--webhook takes no user or password in the address: sign the rows with {SECRET}")
    return parts


def _key(secret: str) -> bytes:
    """The bytes of a secret: what follows `whsec_` is Base64, anything else is taken as it is.

    >>> _key("whsec_c2VjcmV0"), _key("secret")
    (b'secret', b'secret')
    """
    if not secret.startswith(ENCODED_SECRET):
        return secret.encode(errors="surrogateescape")
    try:
        return base64.b64decode(secret.removeprefix(ENCODED_SECRET), validate=True)
    except binascii.Error:
        raise MambaADError(f"{SECRET}: expected Base64 after {ENCODED_SECRET}") from None


def _headers(row: bytes, secret: str, key: bytes) -> dict[str, str]:
    identity, timestamp = f"msg_{hashlib.sha256(row).hexdigest()[:32]}", str(int(time.time()))
    headers = {"Content-Type": "application/json", "User-Agent": "mambaad"}
    headers |= {"webhook-id": identity, "webhook-timestamp": timestamp}
    if key:
        signed = hmac.digest(key, f"{identity}.{timestamp}.".encode() + row, "sha256")
        headers["webhook-signature"] = f"v1,{base64.b64encode(signed).decode()}"
        plain = hmac.digest(secret.encode(errors="surrogateescape"), row, "sha256")
        headers[SIGNATURE] = f"sha256={plain.hex()}"
    return headers
