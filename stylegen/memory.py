"""The memory of the process: how much more it may take, and that it keeps what it has freed."""

import ctypes
import os
import sys
from contextlib import suppress
from pathlib import Path

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # mallopt(3)


def keep_freed() -> bool:
    """Lets glibc's malloc keep freed memory for the next allocation; whether that took effect (Linux with glibc only).

    Asking the system for it again costs more than using it. By itself it maps each large tensor anew and unmaps it when
    it is freed, and the system clears every page at its first touch, which takes several times as long as one pass over
    the tensor. The price: the memory of the process does not shrink. Where the environment configures malloc
    (MALLOC_..., GLIBC_TUNABLES) nothing changes.
    """
    if sys.platform != "linux" or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    return mallopt is not None and bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, -1))


def available() -> int:
    """Bytes that may still be taken: on Linux by /proc and the control group, elsewhere half of what is built in.

    0 where the system tells nothing.
    """
    found = []
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found.append(1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]))
    with suppress(OSError, ValueError):  # "max" is no number
        group = Path("/sys/fs/cgroup")
        limit, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
        found.append(max(limit - used, 0))
    if not found:
        with suppress(AttributeError, OSError, ValueError):
            found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)
    return min(found, default=0)
