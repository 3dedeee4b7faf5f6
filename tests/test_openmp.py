"""Threads wait asleep, unless the environment wants it otherwise."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import os, sys
from stylegen.tools import cli
cli.cli = lambda **_: print(os.environ.get("GOMP_SPINCOUNT"), "torch" in sys.modules)
cli.main()
"""


@pytest.mark.parametrize(
    ("given", "spins"), [({}, "300"), ({"GOMP_SPINCOUNT": "9"}, "9"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")]
)
def test_spins(given, spins):
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    environment = {name: value for name, value in os.environ.items() if name not in names} | given
    said = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
    assert said.stdout.split() == [spins, "False"]  # torch reads it when it is imported, later
