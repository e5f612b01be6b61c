"""How glibc's allocator treats the large buffers of a network, which come and go with every image."""

import os

LARGEST = 4 * 2**20  # bytes of a buffer that is kept for the next one
KEPT = 512 * 2**20  # bytes at the end of the heap that are kept
_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # M_MMAP_THRESHOLD and M_TRIM_THRESHOLD of malloc.h


def keep_freed_memory() -> bool:
    """Let freed memory be used again, instead of going back to the system and coming from it page by page.

    By default the end of the heap goes back to the system as soon as it is free, and ever larger buffers share the heap
    with small ones, which breaks it into pieces. Here buffers of more than LARGEST are mapped, each time anew, so that
    their memory is the system's again, and the heap keeps the others. Returns whether the allocator took it: others
    than glibc's do not, and it is left alone where the user has set it (the environment's MALLOC_… or GLIBC_TUNABLES).
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return False
    import ctypes

    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_MMAP_THRESHOLD, LARGEST)) and bool(mallopt(_TRIM_THRESHOLD, KEPT))
