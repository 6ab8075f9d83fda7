"""Scripts beside the tests that need Triton set up before it is imported, each run in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def run(script: Path, **environment: str) -> str:
    """Run a script, without the interpreter unless it is asked for, and return what it prints.

    Args:
        script: The script; its folder, that of all tests and the checkout are importable.
        environment: Further variables.
    """
    tests = Path(__file__).parent
    paths = os.pathsep.join([str(tests.parent), str(tests), str(script.parent), os.environ.get("PYTHONPATH", "")])
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script)],
        env=kept | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout
