"""python -m mambaad_cli, and what the command `mambaad` runs."""

import io
import os
import sys

from mambaad_cli.allocator import keep_freed_memory
from mambaad_cli.files import is_closed_pipe


def main() -> None:
    from mambaad_cli.cli import app

    keep_freed_memory()
    for stream in (sys.stdout, sys.stderr):
        print_anything(stream)
    try:
        app(prog_name="mambaad")
    except OSError as error:
        if not is_closed_pipe(error):
            raise
        # the reader of our output has closed it, as in `mambaad score … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def print_anything(stream: object) -> None:
    """Let a stream take every character: files and pipes are UTF-8, as all files of mambaad are; a terminal that has no
    `→` shows `?`. What PYTHONIOENCODING asks for is left as it is."""
    if not isinstance(stream, io.TextIOWrapper) or "PYTHONIOENCODING" in os.environ:
        return
    if stream.encoding.lower().replace("-", "") != "utf8":
        if stream.isatty():
            stream.reconfigure(errors="replace")
        else:
            stream.reconfigure(encoding="utf-8")


if __name__ == "__main__":
    main()
