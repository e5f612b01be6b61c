"""Processes that are killed when they come to a line of some modules for the n-th time."""

import os
import signal
import sys
import traceback
from collections.abc import Callable
from types import FrameType


def kill_at_line(number: int, work: Callable[[], object], modules: tuple[str, ...]) -> bool:
    """Run `work` in a process that is killed when it comes to a line of these modules for the n-th time.

    Returns whether it was killed: False once `number` is larger than the number of lines.
    """
    child = os.fork()
    if child == 0:
        left = number

        def trace(frame: FrameType, event: str, argument: object) -> object:
            nonlocal left
            if not frame.f_code.co_filename.endswith(modules):
                return None
            if event == "line":
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
            return trace

        try:
            sys.settrace(trace)
            work()
        except BaseException:
            sys.settrace(None)
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL)
    return status == signal.SIGKILL
