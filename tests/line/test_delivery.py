import base64
import hashlib
import hmac
import json
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mambaad_cli import MambaADError
from mambaad_cli.line import delivery
from mambaad_cli.line.delivery import SECRET, SIGNATURE, Delivery, command, webhook

ROW = b'{"path": "a.png"}\n'


class Server(ThreadingHTTPServer):
    """Keeps what was posted, and answers with the statuses that it was told, the last one again and again."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.got: list[tuple[str, bytes, dict[str, str]]] = []
        self.answers = [200]
        self.hang = threading.Event()
        self.hang.set()
        self.url = f"http://127.0.0.1:{self.server_port}/rows?token=confidential"


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.hang.wait(5)
        self.server.got.append((self.path, body, dict(self.headers)))
        answers = self.server.answers
        self.send_response(answers.pop(0) if len(answers) > 1 else answers[0])
        self.send_header("Location", "/elsewhere")
        self.end_headers()

    do_GET = do_POST

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv(SECRET, raising=False)
    with Server() as running:
        threading.Thread(target=running.serve_forever, args=[0.01], daemon=True).start()
        yield running
        running.hang.set()
        running.shutdown()


def delivered(sender: tuple[str, delivery.Send], rows: list[bytes], attempts: int = 5) -> list[str]:
    """Send rows; what was said."""
    said: list[str] = []
    one = Delivery(*sender, said.append, attempts, pause=0.01)
    for row in rows:
        one.put(row)
    one._rows.join()
    one.close()
    return said


def test_a_row_is_posted_and_signed_with_the_secret(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SECRET, "confidential")
    assert delivered(webhook(server.url), [ROW]) == []
    ((path, body, headers),) = server.got
    assert (path, body, headers["Content-Type"]) == ("/rows?token=confidential", ROW, "application/json")
    assert headers[SIGNATURE] == "sha256=" + hmac.new(b"confidential", ROW, hashlib.sha256).hexdigest()


def test_without_a_secret_nothing_is_signed(server: Server) -> None:
    delivered(webhook(server.url), [ROW])
    headers = {name.lower() for name in server.got[0][2]}
    assert SIGNATURE.lower() not in headers
    assert "webhook-signature" not in headers
    assert {"webhook-id", "webhook-timestamp"} <= headers


@pytest.mark.parametrize(
    ("secret", "key"), [("confidential", "confidential"), ("whsec_Y29uZmlkZW50aWFs", "confidential")]
)
def test_a_row_is_signed_as_standard_webhooks_has_it(
    server: Server, monkeypatch: pytest.MonkeyPatch, secret: str, key: str
) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    monkeypatch.setenv(SECRET, secret)
    server.answers = [500, 200, 200]
    before = int(time.time())
    delivered(webhook(server.url), [ROW, b"another"])
    first, again, other = ({name.lower(): value for name, value in headers.items()} for _, _, headers in server.got)
    assert first["webhook-id"] == again["webhook-id"] != other["webhook-id"]
    assert before <= int(again["webhook-timestamp"]) <= time.time()
    signed = f"{again['webhook-id']}.{again['webhook-timestamp']}.".encode() + ROW
    openssl = subprocess.run(
        ["openssl", "dgst", "-sha256", "-hmac", key, "-binary"], input=signed, capture_output=True, check=True
    )
    assert again["webhook-signature"] == f"v1,{base64.b64encode(openssl.stdout).decode()}"


def test_a_secret_that_cannot_be_decoded_is_refused_and_not_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SECRET, "whsec_confidential!")
    with pytest.raises(MambaADError, match="expected Base64 after whsec_$"):
        webhook("http://127.0.0.1/")


def test_an_unforeseen_error_is_a_failed_attempt_and_the_thread_goes_on() -> None:
    sent = []

    def send(row: bytes) -> None:
        sent.append(row)
        if row == b"1":
            raise UnicodeError("label empty or too long")

    assert delivered(("odd", send), [b"1", b"2"], attempts=2) == [
        "odd: a row was not delivered: UnicodeError: label empty or too long"
    ]
    assert sent == [b"1", b"1", b"2"]


def test_where_nobody_can_be_told_the_thread_goes_on() -> None:
    sent = []

    def send(row: bytes) -> None:
        sent.append(row)
        raise delivery.Refused("no")

    def say(line: str) -> None:
        raise BrokenPipeError

    one = Delivery("mute", send, say)
    one.put(b"1")
    one.put(b"2")
    one._rows.join()
    assert sent == [b"1", b"2"]


def test_a_host_without_an_address_is_told_at_the_start_and_tried_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network of a line may come up after its PC."""

    def nobody(host: str, *args: object, **kwargs: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", nobody)
    said: list[str] = []
    name, _ = webhook("http://plc.local/rows?token=confidential", said.append)
    assert name == "--webhook http://plc.local"
    assert said == [
        "--webhook http://plc.local: the host is not known now (Name or service not known): rows are sent all the same"
    ]


def test_rows_are_sent_again_until_they_are_taken_and_in_order(server: Server) -> None:
    server.answers = [500, 429, 200, 503, 200]
    assert delivered(webhook(server.url), [b"1", b"2"]) == []
    assert [body for _, body, _ in server.got] == [b"1", b"1", b"1", b"2", b"2"]


def test_a_server_that_never_takes_a_row_is_told_without_its_secrets(server: Server) -> None:
    server.answers = [500]
    (line,) = delivered(webhook(server.url), [ROW], attempts=3)
    assert line == "--webhook http://127.0.0.1: a row was not delivered: answered 500"
    assert len(server.got) == 3


@pytest.mark.parametrize("status", [302, 404])
def test_a_row_that_is_refused_is_not_sent_again_nor_elsewhere(server: Server, status: int) -> None:
    server.answers = [status]
    (line,) = delivered(webhook(server.url), [ROW])
    assert line.endswith(f"answered {status}: a row was not delivered")
    assert len(server.got) == 1


def test_a_server_that_hangs_keeps_nobody_waiting(server: Server) -> None:
    server.hang.clear()
    said: list[str] = []
    one = Delivery(*webhook(server.url), said.append, pause=0.01)
    for _ in range(20):
        one.put(ROW)
    one.close(seconds=0.05)
    assert said == ["--webhook http://127.0.0.1: 20 rows were not delivered"]


def test_nobody_there_is_one_line() -> None:
    (line,) = delivered(webhook("http://127.0.0.1:1/"), [ROW], attempts=2)
    assert "Connection refused" in line


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://a/b",
        "example.com",
        "http://",
        "http://a b/",
        "http://a:x/",
        "http://[/",
        "",
        "http://cam..local/x",
        f"http://{'x' * 64}.com/",
    ],
)
def test_other_addresses_are_refused(url: str) -> None:
    with pytest.raises(MambaADError, match="http or https alone$"):
        webhook(url)


def test_a_password_in_an_address_is_refused_and_not_printed() -> None:
    with pytest.raises(MambaADError) as caught:
        webhook("https://user:confidential@example.com/")
    assert "confidential" not in str(caught.value)


def test_more_rows_than_can_wait_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "MAX_WAITING", 2)
    started, go, said = threading.Event(), threading.Event(), list[str]()

    def send(row: bytes) -> None:
        started.set()
        go.wait(5)

    one = Delivery("slow", send, said.append)
    one.put(ROW)
    started.wait(5)
    for _ in range(3):
        one.put(ROW)
    assert said == ["slow: 2 rows wait already: others are left out"]
    go.set()
    one.close()
    assert said[1:] == ["slow: 1 rows were not delivered"]


def test_what_is_left_at_the_end_is_sent_once_more_and_told_in_one_line() -> None:
    sent, said = list[bytes](), list[str]()

    def send(row: bytes) -> None:
        sent.append(row)
        raise OSError("nobody there")

    one = Delivery("gone", send, said.append, pause=60.0)
    for number in b"123":
        one.put(bytes([number]))
    one.close()
    assert sent[-2:] == [b"2", b"3"]
    assert said == ["gone: 3 rows were not delivered"]


def test_a_command_gets_the_row_and_no_shell_sees_it(tmp_path: Path) -> None:
    evil = json.dumps({"path": f"$(touch {tmp_path}/pwned); `touch {tmp_path}/pwned` \n'\""}).encode()
    words = f"tee '{tmp_path}/got it' {tmp_path}/$HOME;touch"
    assert delivered(command(words), [evil]) == []
    assert (tmp_path / "got it").read_bytes() == evil
    assert sorted(path.name for path in tmp_path.iterdir()) == ["$HOME;touch", "got it"]


def test_a_command_does_not_get_the_secret_of_the_webhook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SECRET, "confidential")
    monkeypatch.setenv("OTHER", "variable")
    (tmp_path / "tell.sh").write_text(f"env > '{tmp_path}/env'")
    assert delivered(command(f"sh {tmp_path}/tell.sh"), [ROW]) == []
    environment = (tmp_path / "env").read_text()
    assert "OTHER=variable" in environment
    assert "confidential" not in environment


def test_a_command_that_fails_is_one_line_and_not_run_again() -> None:
    assert delivered(command("false"), [ROW]) == ["--exec false: ended with status 1"]
    assert delivered(command("/no/such/program --x"), [ROW]) == ["--exec /no/such/program: No such file or directory"]
    for line in ("", "a 'b"):
        with pytest.raises(MambaADError, match="--exec"):
            command(line)
