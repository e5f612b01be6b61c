"""The pauses between two looks into a folder: short ones, or until the system tells of a change (inotify)."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

POLL = 0.2  # seconds between two listings
POLL_REPORTED = 1.0  # the same where the system reports changes: it does not for network drives


class Pauses:
    """Waits until the folder is listed again."""

    def __init__(self, longest: float) -> None:
        self.longest = longest
        self.changed = threading.Event()

    def wait(self, least: float, due: float) -> None:
        """Wait for at least `least` seconds, then until something changes, or for `due` seconds, or `longest`."""
        time.sleep(least)
        if self.changed.wait(max(0.0, min(self.longest, due) - least)):
            self.changed.clear()


@contextmanager
def changes(folder: Path) -> Iterator[Pauses]:
    """Pauses that end when something changes in a folder, if `watchfiles` is installed; else they are short."""
    try:
        import watchfiles
    except ImportError:
        yield Pauses(POLL)
        return
    pauses, ending = Pauses(POLL_REPORTED), threading.Event()

    def follow() -> None:
        while not ending.is_set():
            try:
                for _ in watchfiles.watch(
                    folder, watch_filter=None, debounce=50, step=10, rust_timeout=500, stop_event=ending
                ):
                    pauses.changed.set()
            except (OSError, RuntimeError):  # the folder is gone, or there are too many to follow
                pauses.longest = POLL
                ending.wait(POLL_REPORTED)

    thread = threading.Thread(target=follow, name="changes", daemon=True)
    thread.start()
    try:
        yield pauses
    finally:
        ending.set()
        thread.join(2)
