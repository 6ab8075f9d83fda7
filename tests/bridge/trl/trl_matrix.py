"""Run test_versions.py on several releases of TRL, each in an environment that is thrown away, and write the table.

python tests/bridge/trl/trl_matrix.py docs/trl_versions.md

An environment holds what the release needs differently and finds the rest, torch above all, in the one that this
program runs in.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

RELEASES = (
    "trl==1.0.0 transformers==4.56.2 accelerate==1.4.0",  # the oldest of all three
    "trl==1.0.0",
    "trl==1.4.0",
    "trl==1.9.2",
    "trl==1.13.0",
    "trl==1.16.0",
)
PACKAGES = ("trl", "transformers", "accelerate", "torch")
PAGE = """# Releases of TRL

`make trl-matrix` runs `tests/bridge/trl/test_versions.py` on these releases, each with the newest versions that it
takes of what it needs (first row: the oldest), and writes this table.

| {names} | tests |
| {rules} |
{rows}

Outside `{range}` the trainer refuses to start, with the range in the message; plain GRPO of 1.15 fails on a CPU.
TRL 1.13 and older import `requests` without asking for it, so the extra `train` does.
"""
HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]


def run_on(requirements: str) -> tuple[list[str], str, bool]:
    """Return the versions that were installed, what pytest said, and whether all tests passed."""
    with tempfile.TemporaryDirectory(prefix="trl-matrix-") as folder:
        venv.create(folder, with_pip=False)
        python = str(Path(folder, "bin", "python"))
        place = sysconfig.get_path("purelib", vars={"base": folder, "platbase": folder})
        # Sorted last, so that the environment's own packages come first.
        Path(place, "zz_shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
        environment = {"OMP_NUM_THREADS": "1"} | os.environ | {"PYTHONPATH": str(ROOT)}

        def call(*words: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run([python, *words], env=environment, cwd=ROOT, capture_output=True, text=True)

        installed = call("-m", "pip", "install", "--quiet", "requests", *requirements.split())
        if installed.returncode:
            return [requirements], "could not be installed", False
        names = f"from importlib.metadata import version; print(*map(version, {PACKAGES!r}))"
        versions = call("-c", names).stdout.split()
        done = call("-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "test_versions.py"))
        said = re.findall(r"\d+ (?:passed|failed|errors?|skipped)", done.stdout.splitlines()[-1]) if done.stdout else []
        if done.returncode:
            print(done.stdout[-5000:], done.stderr[-2000:], file=sys.stderr)
        return versions, ", ".join(said) or f"status {done.returncode}", done.returncode == 0


def main(path: Path) -> int:
    """Run the matrix and write the table; 1 when a release fails."""
    from entropy_theory.bridge.trl import SUPPORTED_TRL

    rows, passed = [], True
    for requirements in RELEASES:
        versions, said, well = run_on(requirements)
        passed &= well
        rows.append(f"| {' | '.join(versions)} | {said} |")
        print(rows[-1], flush=True)
    text = PAGE.format(
        names=" | ".join(PACKAGES), rules="--- | " * len(PACKAGES) + "---", rows="\n".join(rows), range=SUPPORTED_TRL
    )
    path.write_text(text)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
