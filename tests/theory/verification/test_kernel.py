"""The proofs compile, a planted error breaks them, and an edited file is noticed without Coq."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from entropy_theory.cli import main
from entropy_theory.theory.verification import kernel, verify
from entropy_theory.theory.verification.catalogue import identifiers
from entropy_theory.theory.verification.evidence import BUDGETS, verdict

PLANTED = json.loads((kernel.FOLDER / "planted_errors.json").read_text(encoding="utf-8"))


@pytest.fixture
def proofs(tmp_path):
    folder = tmp_path / "proofs"
    shutil.copytree(kernel.FOLDER, folder)
    return folder


def verdict_of(identifier, folder, run=None):
    (check,) = kernel.kernel_checks(identifier, run, folder)
    evidence = check(BUDGETS["quick"])
    return verdict(check.kind, evidence), evidence


def test_the_index_names_statements_that_are_there():
    assert set(kernel.theorems()) <= set(identifiers())
    assert {"one-sided-sign-theorem", "step-bound", "concavity", "many-small-steps"} <= set(kernel.theorems())


def test_the_record_is_that_of_the_files():
    """Fails when a proof was edited and not checked again: see the docstring of the module for how to record it."""
    words, evidence = verdict_of("step-bound", kernel.FOLDER)
    assert words == "proved by a kernel, not re-run"
    assert evidence.passed
    assert evidence.summary.startswith("Coq ")
    assert evidence.data["files"]["StepBound.v"] == kernel.digests()["StepBound.v"]
    assert {theorem["theorem"] for theorem in evidence.data["theorems"]} >= {"StepBound.step_bound"}
    assert evidence.data["axioms"]


def test_an_edited_file_is_named_in_every_verdict(proofs):
    path = proofs / "Ray.v"
    path.write_text(path.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    for identifier in ("step-bound", "gradient"):
        words, evidence = verdict_of(identifier, proofs)
        assert words == "not proved: edited since the kernel's check: Ray.v"
        assert not evidence.passed


def test_without_a_record_nothing_counts_as_proved(proofs):
    (proofs / "checked.json").unlink()
    words, evidence = verdict_of("step-bound", proofs)
    assert words == "not proved"
    assert "no record" in evidence.summary


def test_a_new_run_decides_by_itself(proofs):
    (proofs / "Ray.v").write_text("(* edited *)", encoding="utf-8")
    accepted = kernel.Run(True, "Coq 8.16.1", 20.0, "clean")
    assert verdict_of("step-bound", proofs, accepted)[0] == "proved by a kernel, re-run"
    refused = kernel.Run(False, "Coq 8.16.1", 20.0, "check.sh: Ray.v does not compile")
    words, evidence = verdict_of("step-bound", proofs, refused)
    assert not evidence.passed
    assert words.startswith("not proved")
    assert "does not compile" in evidence.summary


@pytest.mark.parametrize(("status", "proved"), [(0, True), (1, False)])
def test_the_script_decides_and_a_record_is_kept_of_success_only(proofs, status, proved, monkeypatch):
    monkeypatch.setattr(kernel, "which", lambda tool: tool)
    (proofs / "check.sh").write_text(f"echo 'versions: Coq 9'; echo done; exit {status}\n", encoding="utf-8")
    (proofs / "checked.json").unlink()
    run = kernel.record(proofs)
    assert (run.proved, run.versions, run.message) == (proved, "Coq 9", "done")
    assert (proofs / "checked.json").is_file() == proved


def test_without_coq_the_command_ends_with_the_install_line(monkeypatch, capsys):
    monkeypatch.setattr(kernel, "which", lambda tool: None)
    assert main(["verify", "--quick", "--only", "step-bound", "--kernel"]) == 2
    error = capsys.readouterr().err
    assert "apt-get install coq libcoq-coquelicot" in error
    assert len(error.strip().splitlines()) == 1


def test_without_coquelicot_too(proofs, monkeypatch):
    monkeypatch.setattr(kernel, "which", lambda tool: tool)
    (proofs / "check.sh").write_text("echo 'Coquelicot is missing' >&2; exit 2\n", encoding="utf-8")
    with pytest.raises(ValueError, match="apt-get install coq libcoq-coquelicot"):
        kernel.check_again(proofs)


def test_an_installed_package_has_no_proofs(tmp_path):
    assert kernel.kernel_checks("step-bound", folder=tmp_path) == ()
    with pytest.raises(ValueError, match="kernel: expected a checkout"):
        kernel.check_again(tmp_path)


def test_the_report_carries_it():
    report = verify(only=["step-bound", "rises-come-and-go"], budget="quick").to_dict()
    bound, rises = report["results"]
    assert bound["strongest"] == "kernel"
    assert rises["strongest"] == "symbolic"
    assert report["kernel"] is False
    assert json.dumps(bound["checks"][-1]["evidence"]["data"])
    assert Path(bound["checks"][-1]["subject"].split(", ")[0]).suffix == ".v"


@pytest.fixture(scope="module")
def checked():
    """What the kernel says of the proofs as they stand."""
    try:
        return kernel.check_again()
    except ValueError as error:  # its message is the install line
        pytest.skip(str(error))


@pytest.mark.slow
def test_the_kernel_accepts_the_proofs(checked):
    assert checked.proved, checked.message
    assert checked.message.startswith("coqchk: clean")


def coqc(folder, name):
    command = ["coqc", "-q", "-Q", ".", "EntropyTheory", "-w", "-ambiguous-paths", name]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory, checked):
    """A copy of the proofs with every file compiled, in the order of _CoqProject."""
    folder = tmp_path_factory.mktemp("compiled") / "proofs"
    shutil.copytree(kernel.FOLDER, folder)
    for name in (folder / "_CoqProject").read_text(encoding="utf-8").split():
        if name.endswith(".v"):
            done = coqc(folder, name)
            assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("planted", PLANTED, ids=lambda planted: f"{planted['file']}: {planted['error']}")
def test_a_planted_error_changes_one_place(planted):
    assert (kernel.FOLDER / planted["file"]).read_text(encoding="utf-8").count(planted["old"]) == 1
    assert planted["new"] != planted["old"]


@pytest.mark.slow
@pytest.mark.parametrize("planted", PLANTED, ids=lambda planted: f"{planted['file']}: {planted['error']}")
def test_a_planted_error_does_not_compile(planted, compiled, tmp_path):
    folder = tmp_path / "proofs"
    shutil.copytree(compiled, folder)
    path = folder / planted["file"]
    path.write_text(path.read_text(encoding="utf-8").replace(planted["old"], planted["new"]), encoding="utf-8")
    done = coqc(folder, planted["file"])
    assert done.returncode == 1
    assert "Error:" in done.stderr
    assert "Syntax error" not in done.stderr  # it is the proof that fails
