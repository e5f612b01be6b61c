"""python -m mambaad_cli, and what the command `mambaad` runs."""

import os
import sys

from mambaad_cli.allocator import keep_freed_memory


def main() -> None:
    from mambaad_cli.cli import app

    keep_freed_memory()
    try:
        app(prog_name="mambaad")
    except BrokenPipeError:  # the reader of our output has closed it, as in `mambaad score … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


if __name__ == "__main__":
    main()
