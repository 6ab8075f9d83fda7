"""Files, folders and faults of the machine: a status, one line, and nothing lost, followed or left half-written."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from entropy_theory import cli, records
from entropy_theory.errors import InputError

BATCH = Path(__file__).parent / "control" / "grpo_batch.safetensors"
TOY = ["simulate", "toy", "--policies", "20", "--vocab-size", "30", "--steps", "4"]

Capture = pytest.CaptureFixture[str]


def one_line(capsys: Capture) -> str:
    said = capsys.readouterr().err
    assert said.startswith("entropy-theory: ")
    assert said.count("\n") == 1
    return said


def run(words: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(p for p in sys.path if p)
    command = [sys.executable, "-m", "entropy_theory", *words]
    settings = os.environ | {"PYTHONPATH": path} | environment
    return subprocess.run(
        command, env=settings, capture_output=True, text=True, timeout=120, encoding="utf-8", errors="replace"
    )


# -- locks and folders ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dangling", [False, True])
def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path, capsys: Capture, dangling: bool) -> None:
    target, out = tmp_path / "precious.txt", tmp_path / "run"
    out.mkdir()
    if not dangling:
        target.write_text("years of work")
    (out / records.LOCK).symlink_to(target)
    assert cli.main([*TOY, "--out", str(out)]) == 2
    assert "out: expected a folder whose .lock is a plain file" in one_line(capsys)
    assert target.exists() != dangling
    assert dangling or target.read_text() == "years of work"


def test_a_lock_of_another_kind_or_with_content_is_left_as_it_is(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / records.LOCK)
    with pytest.raises(InputError, match="plain file"), records.exclusive(tmp_path):
        pass
    (tmp_path / records.LOCK).unlink()
    (tmp_path / records.LOCK).write_text("held by somebody's own program")
    with records.exclusive(tmp_path):
        pass
    assert (tmp_path / records.LOCK).read_text() == "held by somebody's own program"


def test_who_waits_for_a_folder_that_is_taken_away_gets_the_new_one(tmp_path: Path) -> None:
    """Two processes are never in one folder, even when a refused run removes it and its lock while others wait."""
    code = (
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "from entropy_theory import records\n"
        "out = Path(sys.argv[1])\n"
        "for _ in range(6):\n"
        "    try:\n"
        "        with records.run_folder(out, {'a': 1}):\n"
        "            token = out.parent / 'inside'\n"
        "            os.close(os.open(token, os.O_CREAT | os.O_EXCL))\n"
        "            time.sleep(0.002)\n"
        "            token.unlink()\n"
        "            raise ValueError('refused')\n"
        "    except ValueError:\n"
        "        pass\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    several = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    errors = [process.communicate(timeout=100)[1] for process in several]
    assert [process.returncode for process in several] == [0, 0, 0], errors
    assert [path for path in tmp_path.rglob("*") if not path.is_dir()] == []


def test_a_refused_run_leaves_no_folder_and_the_corrected_command_runs(
    tiny_decoder: Path, tmp_path: Path, capsys: Capture
) -> None:
    pytest.importorskip("trl", reason="needs the extra 'train'")
    broken = shutil.copytree(tiny_decoder, tmp_path / "broken")
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    size = ["--steps", "1", "--prompts-per-step", "2", "--generations", "2", "--max-completion-length", "4"]
    out = tmp_path / "runs" / "a" / "b"
    for command, more in (("train", size), ("audit", [*size[2:], "--at", "1", "--seeds", "0"])):
        assert cli.main([command, "--model", str(broken), *more, "--out", str(out)]) == 2
        assert f"model: expected a causal language model in safetensors, received '{broken}'" in one_line(capsys)
        assert not (tmp_path / "runs").exists()
    assert cli.main(["train", "--model", str(tiny_decoder), *size, "--out", str(out)]) == 0
    earlier = tmp_path / "mine"
    earlier.mkdir()  # a folder that was there before stays, empty
    assert cli.main(["train", "--model", str(broken), *size, "--out", str(earlier)]) == 2
    assert list(earlier.iterdir()) == []


@pytest.mark.parametrize(
    "command", [TOY, ["verify", "--quick", "--only", "lemma-3.1"], ["lens", str(BATCH)]], ids=lambda c: c[0]
)
@pytest.mark.parametrize("name", ["file/run", "x" * 300, "link/run"])
def test_a_place_that_cannot_be_written_is_named_before_any_work(
    command: list[str], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("nowhere")
    monkeypatch.setattr("entropy_theory.theory.verification.verify", lambda *_, **__: pytest.fail("work began"))
    before = sorted(tmp_path.iterdir())
    assert cli.main([*command, "--out", str(tmp_path / name)]) == 2
    assert "out: expected a folder that can be written" in one_line(capsys)
    assert sorted(tmp_path.iterdir()) == before


def test_a_cache_that_cannot_be_written_is_noticed_before_the_warm_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    pytest.importorskip("trl", reason="needs the extra 'train'")
    (tmp_path / "home").write_text("")
    monkeypatch.setenv("ENTROPY_THEORY_CACHE", str(tmp_path / "home" / "cache"))
    monkeypatch.setattr("entropy_theory.testbed.decoder.warm_up", lambda *_: pytest.fail("work began"))
    assert cli.main(["train", "--steps", "1", "--out", str(tmp_path / "run")]) == 1
    assert "$ENTROPY_THEORY_CACHE names another folder" in one_line(capsys)
    assert not (tmp_path / "run").exists()


# -- terminals --------------------------------------------------------------------------------------------------------


def test_files_are_written_whatever_the_terminal_can_show(tmp_path: Path) -> None:
    done = run(
        ["lens", str(BATCH), "--resamples", "5", "--out", str(tmp_path)],
        PYTHONIOENCODING="ascii",
        PYTHONUTF8="0",
        LC_ALL="C",
    )
    assert done.returncode == 0, done.stderr
    assert {"lens.json", "lens.png"} <= {path.name for path in tmp_path.iterdir()}
    assert "tokens" in done.stdout


def test_help_ends_in_four_columns() -> None:
    code = (
        "import sys\n"
        "from entropy_theory import cli\n"
        "sys.exit(max(cli.main([*name.split(), '--help']) for name in cli.COMMANDS))"
    )
    environment = os.environ | {"COLUMNS": "4", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("--out") >= len(cli.COMMANDS)


def test_a_reader_that_leaves_is_no_error() -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = f"{sys.executable} -m entropy_theory verify --quick --only theorem-3.3 | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() in ("0", "1", "141")
    assert done.stderr == ""


@pytest.mark.parametrize("closed", [">&-", "2>&-"])
def test_a_closed_stream_loses_no_file(tmp_path: Path, closed: str) -> None:
    out = tmp_path / "report"
    command = f"{sys.executable} -m entropy_theory verify --quick --only theorem-3.3 --out {out} {closed}"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert list(out.iterdir())


# -- errors that nobody foresaw ---------------------------------------------------------------------------------------


def test_an_unforeseen_error_is_one_line_and_shown_on_request(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture, tmp_path: Path
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError("a name\nover two lines \x1b[31m")

    monkeypatch.setattr("entropy_theory.control.TokenBatch.load", broken)
    assert cli.main(["lens", str(BATCH)]) == 1
    said = one_line(capsys)
    assert "KeyError" in said
    assert "--debug shows where" in said
    assert "\x1b" not in said
    for words in (["--debug", "lens", str(BATCH)], ["lens", str(BATCH), "--debug"]):
        with pytest.raises(KeyError):
            cli.main(words)


# -- disks ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk on which a few small files fit and nothing else."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24k", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("mounting a tmpfs needs root")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def half_written(folder: Path) -> list[Path]:
    return [path for path in folder.rglob(".*") if path.name != records.LOCK]


@pytest.mark.parametrize(
    "words",
    [
        ["simulate", "toy", "--policies", "200", "--vocab-size", "50", "--steps", "2"],
        ["lens", str(BATCH), "--resamples", "5"],
        ["verify", "--quick", "--only", "theorem-3.3"],
    ],
    ids=lambda words: words[0],
)
def test_a_full_disk_ends_with_status_1(words: list[str], full_disk: Path, capsys: Capture) -> None:
    assert cli.main([*words, "--out", str(full_disk / "run")]) == 1
    said = one_line(capsys)
    assert "could not be written: " in said
    assert "No space left on device" in said
    assert half_written(full_disk) == []


def test_a_full_disk_while_inspecting(byte_model: Path, tmp_path: Path, full_disk: Path, capsys: Capture) -> None:
    pytest.importorskip("transformers")
    path = tmp_path / "rollouts.jsonl"
    path.write_text('{"prompt": "1", "completion": "the sum is right", "reward": 1}\n' * 200)
    words = [
        "inspect",
        str(path),
        "--model",
        str(byte_model),
        "--rule",
        "clip-b",
        "--out",
        str(full_disk / "page.html"),
    ]
    assert cli.main(words) == 1
    assert "could not be written" in one_line(capsys)
    assert half_written(full_disk) == []


def test_a_full_disk_while_the_decoder_is_kept(full_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    from entropy_theory.errors import WriteError
    from entropy_theory.testbed import decoder

    monkeypatch.setenv("ENTROPY_THEORY_CACHE", str(full_disk / "cache"))
    with pytest.raises(WriteError, match="could not be written"):
        decoder.cached_checkpoint(decoder.WarmupConfig(hidden_size=64, layers=1, heads=2, steps=0))
    assert list((full_disk / "cache").iterdir()) == []


# -- digests ----------------------------------------------------------------------------------------------------------


def flip(path: Path, needle: bytes) -> None:
    """Flip one bit behind a place of the file that holds these bytes."""
    content = bytearray(path.read_bytes())
    content[content.rindex(needle) + len(needle) // 2] ^= 1
    path.write_bytes(content)


def test_arrays_carry_a_digest(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    values = np.linspace(0, 1, 50)
    records.save_arrays(path, {"x": values}, {"step": 3})
    arrays, content = records.read_arrays(path)
    assert np.array_equal(arrays["x"], values)
    assert content == {"step": 3}
    whole = path.read_bytes()
    for needle in (values[20:22].tobytes(), rb"{\"step\": 3}"):
        path.write_bytes(whole)
        flip(path, needle)
        with pytest.raises(
            InputError, match=r"out: expected a file as this program wrote it, received .*a.safetensors"
        ):
            records.read_arrays(path)


def test_a_simulation_does_not_resume_from_a_changed_checkpoint(tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "run"
    words = [*TOY, "--checkpoint-every", "2", "--out", str(out)]
    assert cli.main(words) == 0
    for name in ("result.json", "steps.npz", "pairs.npz"):
        (out / name).unlink()
    checkpoint = out / "checkpoint.safetensors"
    whole = checkpoint.read_bytes()
    assert b'"completed":"4"' in whole
    for changed in (
        whole.replace(b'"completed":"4"', b'"completed":"3"'),
        whole[:-9] + bytes([whole[-9] ^ 4]) + whole[-8:],
    ):
        checkpoint.write_bytes(changed)
        capsys.readouterr()
        assert cli.main(words) == 2
        assert "checkpoint.safetensors: expected a whole checkpoint of this configuration" in one_line(capsys)
    checkpoint.write_bytes(whole)
    assert cli.main(words) == 0
