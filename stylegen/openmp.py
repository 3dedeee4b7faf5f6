"""How the threads of one operator wait for each other."""

import os

SPINS = "300"  # more are wasted where the other thread has no core, fewer cost time where it has one


def spin_briefly() -> None:
    """Lets threads that wait sleep soon, in GNU's OpenMP (PyTorch's wheels for Linux), if torch is not imported yet.

    By itself a thread spins for milliseconds, on a core that the one it waits for may need: with another busy process
    beside, training on two cores takes twice as long for it. Where nothing else runs, nothing changes. What the
    environment says (OMP_WAIT_POLICY, GOMP_SPINCOUNT) stays.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
