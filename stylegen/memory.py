"""Memory that a process has freed stays with it, because asking the system for it again costs more than using it."""

import ctypes
import os
import sys

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # mallopt(3)


def keep_freed() -> bool:
    """Lets glibc's malloc keep freed memory for the next allocation; whether that took effect (Linux with glibc only).

    By itself it maps each large tensor anew and unmaps it when it is freed, and the system clears every page at its
    first touch, which takes several times as long as one pass over the tensor. The price: the memory of the process
    does not shrink. Where the environment configures malloc (MALLOC_..., GLIBC_TUNABLES) nothing changes.
    """
    if sys.platform != "linux" or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    return mallopt is not None and bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, -1))
