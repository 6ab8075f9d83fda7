"""Statements that a proof kernel has checked: the Coq files of a checkout, the record of their check, and a new one.

`proofs/theorems.json` says which theorem holds which statement, `proofs/check.sh` compiles the files and asks the
kernel, `proofs/checked.json` records the versions and the digests of the files that it accepted. Without Coq the record
is reported, and that it was not re-run; a file that was edited since no longer has the recorded digest. To record a new
check: `python -c "from entropy_theory.theory.verification import kernel; print(kernel.record())"`.
"""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from shutil import which
from time import perf_counter
from typing import Any

from entropy_theory.errors import invalid
from entropy_theory.records import write_json
from entropy_theory.theory.verification.evidence import Budget, Check, Evidence, Kind

FOLDER = Path(__file__).resolve().parents[3] / "proofs"
INSTALL = "apt-get install coq libcoq-coquelicot"


@dataclass(frozen=True)
class Theorem:
    """One theorem of the index.

    Attributes:
        name: Module and name in Coq.
        file: The file that proves it.
        text: What it states, in ordinary notation.
        axioms: What it rests on.
    """

    name: str
    file: str
    text: str
    axioms: tuple[str, ...]


@dataclass(frozen=True)
class Run:
    """What `check.sh` said.

    Attributes:
        proved: Whether everything compiled, nothing is left unproved, and only allowed axioms are used.
        versions: Of Coq and Coquelicot.
        seconds: How long it took.
        message: Its last line, or what was wrong.
    """

    proved: bool
    versions: str
    seconds: float
    message: str


@cache
def theorems(folder: Path = FOLDER) -> dict[str, tuple[Theorem, ...]]:
    """Read the index: the theorems that hold each statement, by its identifier; empty without a checkout.

    Example:
        >>> theorems(Path("/nowhere"))
        {}
    """
    index = folder / "theorems.json"
    held: dict[str, list[Theorem]] = {}
    for entry in json.loads(index.read_text(encoding="utf-8")) if index.is_file() else ():
        theorem = Theorem(entry["theorem"], entry["file"], entry["text"], tuple(entry["axioms"]))
        for identifier in entry["statements"]:
            held.setdefault(identifier, []).append(theorem)
    return {identifier: tuple(entries) for identifier, entries in held.items()}


def digests(folder: Path = FOLDER) -> dict[str, str]:
    """SHA-256 of the proof files and of their index. Files use each other, so a theorem stands with all of them."""
    files = [*sorted(folder.glob("*.v")), folder / "theorems.json"]
    return {path.name: sha256(path.read_bytes()).hexdigest() for path in files}


def check_again(folder: Path = FOLDER) -> Run:
    """Compile the proofs and ask the kernel; about 20 seconds.

    Raises:
        ValueError: If this is no checkout, or Coq or Coquelicot is not installed; the message says how to install them.
    """
    if not (folder / "check.sh").is_file():
        raise invalid("kernel", "a checkout with its folder proofs/", f"no {folder}")
    if which("coqc") is None:
        raise invalid("kernel", f"Coq and Coquelicot; install them with: {INSTALL}", "no coqc")
    started = perf_counter()
    done = subprocess.run(["sh", str(folder / "check.sh")], capture_output=True, text=True, check=False)
    seconds = perf_counter() - started
    said = (done.stdout if done.returncode == 0 else done.stderr or done.stdout).strip().splitlines() or ["nothing"]
    if done.returncode == 2:
        raise invalid("kernel", f"Coq and Coquelicot; install them with: {INSTALL}", said[-1])
    versions = re.search(r"^versions: (.*)$", done.stdout, re.MULTILINE)
    return Run(done.returncode == 0, versions[1] if versions else "unknown versions", seconds, said[-1])


def record(folder: Path = FOLDER) -> Run:
    """Check the proofs again and, if they hold, record versions and digests in `checked.json`."""
    run = check_again(folder)
    if run.proved:
        write_json(folder / "checked.json", {"versions": run.versions, "files": digests(folder)})
    return run


def kernel_checks(identifier: str, run: Run | None = None, folder: Path = FOLDER) -> tuple[Check, ...]:
    """Build the check of what the kernel has proved of a statement; none where it has proved nothing.

    Args:
        identifier: The statement.
        run: What the kernel has just said; None to report the record.
        folder: Where the proofs are.
    """
    held = theorems(folder).get(identifier, ())
    if not held:
        return ()

    def report(budget: Budget) -> Evidence:
        return _evidence(held, run, folder)

    files = ", ".join(dict.fromkeys(f"proofs/{theorem.file}" for theorem in held))
    first, more = held[0].name.rpartition(".")[2], len(held) - 1
    name = f"{first} and {more} more {'theorems' if more > 1 else 'theorem'}" if more else first
    return (Check(Kind.KERNEL, name, report, files),)


def _evidence(held: tuple[Theorem, ...], run: Run | None, folder: Path) -> Evidence:
    now = digests(folder)
    path = folder / "checked.json"
    recorded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"files": {}}
    edited = sorted(name for name in {*now, *recorded["files"]} if now.get(name) != recorded["files"].get(name))
    proved = run.proved if run is not None else not edited
    versions = run.versions if run is not None else recorded.get("versions", "Coq")
    axioms = sorted({axiom for theorem in held for axiom in theorem.axioms})
    digest = sha256("".join(f"{name} {value}\n" for name, value in now.items()).encode()).hexdigest()
    if run is not None:
        how = f"re-run in {run.seconds:.0f} s" if proved else run.message
    elif proved:
        how = "not re-run here; verify --kernel compiles the files"
    else:
        how = f"edited: {', '.join(edited)}" if path.is_file() else f"no record of a check in {path.name}"
    return Evidence(
        proved,
        f"{versions}: {len(held)} theorems, {len(axioms)} axioms of the real numbers, proof files {digest[:12]}; {how}",
        {
            "theorems": [{"theorem": theorem.name, "file": theorem.file, "text": theorem.text} for theorem in held],
            "axioms": axioms,
            "versions": versions,
            "files": {name: now.get(name, "missing") for name in dict.fromkeys(theorem.file for theorem in held)},
            "digest": digest,
            "edited": edited if path.is_file() else [],
            "rerun": run is not None,
            "region": "every finite vocabulary, every policy with p_i > 0",
        },
    )
