"""Freed memory is kept where that is possible, and only where nobody has configured malloc."""

import os
import subprocess
import sys

import pytest

# Page faults (4 KB) of 64 MB that follow 64 MB that were freed.
SCRIPT = """if True:
    import resource
    from stylegen.memory import keep_freed

    kept, size = keep_freed(), 2**26
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        b"x" * size
    print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def run(**environment: str) -> tuple[str, int]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", SCRIPT]
    kept, faults = subprocess.run(
        command, check=True, capture_output=True, text=True, env=clean | environment
    ).stdout.split()
    return kept, int(faults)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_keep_freed() -> None:
    kept, faults = run()
    if kept == "False":
        pytest.skip("no glibc")
    assert faults < 100
    kept, faults = run(MALLOC_ARENA_MAX="2")
    assert kept == "False"
    assert faults > 10_000
