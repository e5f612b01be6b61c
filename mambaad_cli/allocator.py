"""How glibc's allocator treats the large buffers of a network, which come and go with every image."""

import os

LARGEST = 256 * 2**20  # bytes of a buffer that is kept for the next one
KEPT = 2 * LARGEST  # bytes at the end of the heap that are kept
_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # M_MMAP_THRESHOLD and M_TRIM_THRESHOLD of malloc.h


def keep_freed_memory() -> bool:
    """Let freed memory be used again, instead of going back to the system and coming from it page by page.

    By default buffers of more than 32 MB, as the first layers of an encoder need them, are mapped anew each time, and
    the system clears each of their pages. Returns whether the allocator took it: others than glibc's do not, and it is
    left alone where the user has set it (the environment's MALLOC_… or GLIBC_TUNABLES).
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return False
    import ctypes

    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_MMAP_THRESHOLD, LARGEST)) and bool(mallopt(_TRIM_THRESHOLD, KEPT))
