"""Checkpoints: where others look for them, whole, checked, exact at any step, and of plain TRL on request."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer
from trl_runs import arguments, build, closeness, parameters_after

from entropy_theory import records
from entropy_theory.bridge import trl as bridge
from entropy_theory.bridge.trl import checkpoints
from entropy_theory.testbed import sum_task

SAVING = {"save_strategy": "steps", "save_steps": 1, "max_steps": 4, "learning_rate": 1e-2}


def controlled(model: Path, out: Path, rule: str = "none", kind: Any = None, **options: Any) -> Any:
    kind = kind or bridge.EntropyControlledGRPOTrainer
    config = bridge.EntropyControlledGRPOConfig(**arguments(out, **(SAVING | options)), rule=rule)
    return build(kind, model, config, reward_funcs=closeness)


def names(out: Path) -> list[str]:
    return sorted(path.name for path in out.iterdir() if path.name.startswith("checkpoint-"))


def weights(trainer: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


# -- where others look ------------------------------------------------------------------------------------------------


class Rated(GRPOTrainer):
    """A trainer whose evaluation rates the steps."""

    scores: tuple[float, ...] = (0.1, 0.9, 0.3, 0.2, 0.4, 0.5)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        return super().evaluate(*args, **kwargs) | {"eval_score": self.scores[self.state.global_step - 1]}


class ControlledRated(bridge.EntropyControlMixin, Rated):
    pass


EVALUATED = {"load_best_model_at_end": True, "metric_for_best_model": "score", "greater_is_better": True}
EVALUATED |= {"eval_strategy": "steps", "per_device_eval_batch_size": 8}


@pytest.mark.parametrize("limit", [None, 1, 2])
@pytest.mark.parametrize(
    "changes",
    [
        {"eval_steps": 1},
        {"eval_steps": 1, "save_strategy": "best"},
        # Three steps, inside the second batch of two: where TRL evaluates it saves.
        {"eval_steps": 3, "save_steps": 3, "max_steps": 6, "num_iterations": 2},
    ],
    ids=["steps", "best", "inside a batch"],
)
def test_the_best_model_is_plain_trls(
    tiny_decoder: Path, tmp_path: Path, changes: dict[str, Any], limit: int | None
) -> None:
    found = []
    for kind, place in ((Rated, "plain"), (ControlledRated, "ours")):
        options = arguments(tmp_path / place, **(SAVING | EVALUATED | changes), save_total_limit=limit)
        evaluated = {"reward_funcs": closeness, "eval_dataset": sum_task.dataset(8, 1)}
        trainer = build(kind, tiny_decoder, GRPOConfig(**options), **evaluated)
        trainer.train()
        best = Path(trainer.state.best_model_checkpoint)
        assert best.is_dir()
        assert best.parent == tmp_path / place
        found.append((weights(trainer), best.name, names(tmp_path / place)))
    (plain, plain_best, plain_names), (ours, our_best, our_names) = found
    assert torch.equal(ours, plain)
    assert (our_best, our_names) == (plain_best, plain_names)
    assert plain_best == ("checkpoint-6" if "num_iterations" in changes else "checkpoint-2")


class Own(GRPOTrainer):
    """Writes a file of its own into TRL's checkpoint, uploads it, and notes what is seen on the way."""

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        (folder / "own.txt").write_text("kept")

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        folder = Path(checkpoint_folder)
        self.pushed = (folder, checkpoints.open_checkpoint(folder)["files"], self.args.save_total_limit)


def test_what_others_find_while_a_checkpoint_is_saved(tiny_decoder: Path, tmp_path: Path) -> None:
    trainer = build(Own, tiny_decoder, GRPOConfig(**arguments(tmp_path, **SAVING, save_total_limit=2)))
    trainer = bridge.attach(trainer, "clip-b(mu=0.5)")
    trainer.args.push_to_hub = True  # from here on: the repository itself is not to be made
    saved = []

    class Watch(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            saved.append(checkpoints.open_checkpoint(folder)["files"])

    trainer.add_callback(Watch())
    trainer.train()
    folder, pushed, limit = trainer.pushed
    assert folder == tmp_path / "checkpoint-4"
    assert limit == 2
    assert {"model.safetensors", "optimizer.pt", "trainer_state.json"} <= set(pushed)
    assert [set(files) - set(pushed) for files in saved] == [{"own.txt"}] * 4
    assert names(tmp_path) == ["checkpoint-3", "checkpoint-4"]
    assert (folder / "own.txt").read_text() == "kept"
    assert torch.load(folder / "training_args.bin", weights_only=False).save_total_limit == 2


class Uploading(GRPOTrainer):
    """Copies each checkpoint as it is at the moment of its upload."""

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        folder = Path(checkpoint_folder)
        shutil.copytree(folder, folder.parents[1] / "hub" / folder.name)


class ControlledUploading(bridge.EntropyControlMixin, Uploading):
    pass


def test_what_is_uploaded_inside_a_batch_can_be_resumed(tiny_decoder: Path, tmp_path: Path) -> None:
    options = {"kind": ControlledUploading, "num_iterations": 2, "max_steps": 3}
    trainer = controlled(tiny_decoder, tmp_path / "run", "clip-b(mu=0.5)", **options)
    trainer.args.push_to_hub = True  # from here on: the repository itself is not to be made
    trainer.train()
    again = controlled(tiny_decoder, tmp_path / "again", "clip-b(mu=0.5)", **options)
    again.train(resume_from_checkpoint=str(tmp_path / "hub" / "checkpoint-1"))
    assert torch.equal(weights(again), weights(trainer))


def test_the_last_whole_checkpoint_outlives_a_kill_while_the_next_is_saved(
    tiny_decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = parameters_after(controlled(tiny_decoder, tmp_path / "whole", "stare(target=2.0, adaptive=True)"))
    out = tmp_path / "killed"
    trainer = controlled(tiny_decoder, out, "stare(target=2.0, adaptive=True)", save_total_limit=1)
    seal = checkpoints.seal

    def killed(folder: Path, *rest: Any) -> Any:
        if folder.name == "checkpoint-3":
            raise KeyboardInterrupt
        return seal(folder, *rest)

    monkeypatch.setattr(checkpoints, "seal", killed)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    monkeypatch.undo()
    assert names(out) == ["checkpoint-2", "checkpoint-3"]
    assert checkpoints.latest_checkpoint(out) == out / "checkpoint-2"
    with pytest.raises(ValueError, match=r"a whole checkpoint, received .*checkpoint-3, whose writing was interrupted"):
        controlled(tiny_decoder, out).train(resume_from_checkpoint=str(out / "checkpoint-3"))
    again = controlled(tiny_decoder, out, "stare(target=2.0, adaptive=True)", save_total_limit=1)
    again.train(resume_from_checkpoint=True)
    assert torch.equal(weights(again), expected)
    assert names(out) == ["checkpoint-4"]


def test_a_folder_of_an_older_and_longer_run(tiny_decoder: Path, tmp_path: Path) -> None:
    """The limit deletes what is older, as in plain TRL, not what has the lower step."""
    controlled(tiny_decoder, tmp_path, max_steps=2, save_steps=2).train()
    (tmp_path / "checkpoint-2").rename(tmp_path / "checkpoint-40")
    past = (tmp_path / "checkpoint-40").stat().st_mtime - 100
    os.utime(tmp_path / "checkpoint-40", (past, past))
    controlled(tiny_decoder, tmp_path, max_steps=1, save_total_limit=1).train()
    assert names(tmp_path) == ["checkpoint-1"]


# -- exact at any step ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "layout"),
    [
        pytest.param("clip-b(mu=0.5)|random-mask(fraction=0.1)", {"num_iterations": 3}, marks=pytest.mark.slow),
        ("stare(target=2.0, adaptive=True)|kl-cov(fraction=0.1)", {"num_iterations": 2, "steps_per_generation": 4,
         "gradient_accumulation_steps": 2, "per_device_train_batch_size": 8}),
        pytest.param("clip-b(mu=0.5)|ppo-clip|clip-v(mu=0.5, max_fraction=None)", {"steps_per_generation": 4,
         "gradient_accumulation_steps": 2, "per_device_train_batch_size": 8}, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_a_run_resumes_exactly_from_every_step(
    tiny_decoder: Path, tmp_path: Path, rule: str, layout: dict[str, Any]
) -> None:
    options = {"max_steps": 6} | layout
    whole = controlled(tiny_decoder, tmp_path, rule, **options)
    expected = parameters_after(whole)
    inside = [records.read_json(tmp_path / name / checkpoints.MANIFEST)["mid_batch"] for name in names(tmp_path)]
    assert any(inside)
    assert not all(inside)
    for name in names(tmp_path)[:5]:
        again = controlled(tiny_decoder, tmp_path / f"from-{name}", rule, **options)
        again.train(resume_from_checkpoint=str(tmp_path / name))
        assert torch.equal(weights(again), expected), name
        assert again.rule_state == whole.rule_state


def test_other_processes_cannot_take_up_a_batch(tiny_decoder: Path, tmp_path: Path) -> None:
    controlled(tiny_decoder, tmp_path, num_iterations=2, max_steps=1).train()
    folder = tmp_path / "checkpoint-1"
    manifest = records.read_json(folder / checkpoints.MANIFEST)
    kept = {name: manifest[name] for name in ("rule", "rule_state", "generations", "epochs", "micro_step", "mid_batch")}
    checkpoints.seal(folder, kept | {"processes": 2})
    with pytest.raises(ValueError, match=r"expected 2 processes, as when .*checkpoint-1 was written .*, received 1"):
        controlled(tiny_decoder, tmp_path, num_iterations=2).train(resume_from_checkpoint=str(folder))


def test_another_division_of_the_batch_cannot_take_it_up(tiny_decoder: Path, tmp_path: Path) -> None:
    controlled(tiny_decoder, tmp_path, steps_per_generation=4, per_device_train_batch_size=8, max_steps=2).train()
    folder = tmp_path / "checkpoint-2"
    trainer = controlled(tiny_decoder, tmp_path / "other", steps_per_generation=2, per_device_train_batch_size=8)
    with pytest.raises(ValueError, match=r"steps_per_generation: expected 4, as when .*checkpoint-2 .*, received 2"):
        trainer.train(resume_from_checkpoint=str(folder))


def test_a_checkpoint_without_an_optimizer_says_so(tiny_decoder: Path, tmp_path: Path) -> None:
    controlled(tiny_decoder, tmp_path, save_only_model=True, max_steps=2).train()
    trainer = controlled(tiny_decoder, tmp_path / "again")
    with pytest.warns(UserWarning, match=r"no optimizer, .* no scheduler\.pt, .* no rng_state, which begins anew"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert trainer.state.global_step == 4


# -- checked ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tiny_decoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("saved")
    controlled(tiny_decoder, out, num_iterations=2, max_steps=1).train()
    return out / "checkpoint-1"


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json",
     "generation_batch_0.pt", "training_args.bin", "config.json", checkpoints.MANIFEST],
)  # fmt: skip
def test_a_flipped_bit_is_named(saved: Path, tiny_decoder: Path, tmp_path: Path, name: str) -> None:
    content = (saved / name).read_bytes()
    # In the manifest: a digit of a digest, so that it stays a JSON document of the same length.
    place = content.index(b'"sha256": "') + 12 if name == checkpoints.MANIFEST else len(content) // 2
    (saved / name).write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    try:
        with pytest.raises(ValueError, match=rf"resume_from_checkpoint: expected .*{re.escape(name)}"):
            controlled(tiny_decoder, tmp_path, num_iterations=2).train(resume_from_checkpoint=str(saved))
    finally:
        (saved / name).write_bytes(content)
    checkpoints.open_checkpoint(saved)


def test_a_missing_a_longer_and_an_edited_file_are_named(saved: Path) -> None:
    written = {name: (saved / name).read_bytes() for name in checkpoints.open_checkpoint(saved)["files"]}
    for name, content in written.items():
        (saved / name).unlink()
        with pytest.raises(ValueError, match=rf"expected .*{re.escape(name)} with \d+ bytes, received no such file"):
            checkpoints.open_checkpoint(saved)
        (saved / name).write_bytes(content + b"0")
        with pytest.raises(ValueError, match=rf"{re.escape(name)} with \d+ bytes, received {len(content) + 1} bytes"):
            checkpoints.open_checkpoint(saved)
        (saved / name).write_bytes(content)
    manifest = saved / checkpoints.MANIFEST
    content = manifest.read_text()
    for change, message in (
        ({"generations": 9}, r"entropy_control\.json as it was written, received another content"),
        ({"version": "0.0.1"}, r"a checkpoint of entropy_theory .*, received .*: 0\.0\.1"),
        ({"format": 2}, r"a checkpoint of format 3, received .*: 2"),
    ):
        manifest.write_text(json.dumps(json.loads(content) | change))
        with pytest.raises(ValueError, match=message):
            checkpoints.open_checkpoint(saved)
    for damaged in (content[:40], "[]", "\udcff"):
        manifest.write_text(damaged, errors="surrogateescape")
        with pytest.raises(
            ValueError, match=r"resume_from_checkpoint: expected a (whole checkpoint|checkpoint of format)"
        ):
            checkpoints.open_checkpoint(saved)
    manifest.write_text(content)


def test_nothing_to_resume_from_is_said(tiny_decoder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"resume_from_checkpoint: expected a checkpoint in .*, received none"):
        controlled(tiny_decoder, tmp_path).train(resume_from_checkpoint=True)
    with pytest.raises(
        ValueError, match=r"expected a whole checkpoint, with entropy_control\.json, received .*nowhere"
    ):
        controlled(tiny_decoder, tmp_path).train(resume_from_checkpoint=str(tmp_path / "nowhere"))


# -- of plain TRL, and of another rule --------------------------------------------------------------------------------


def test_a_checkpoint_of_plain_trl(tiny_decoder: Path, tmp_path: Path) -> None:
    options = arguments(tmp_path / "plain", **SAVING)
    plain = build(GRPOTrainer, tiny_decoder, GRPOConfig(**options), reward_funcs=closeness)
    expected = parameters_after(plain)
    folder = str(tmp_path / "plain" / "checkpoint-2")
    for rule in ("none", "clip-b"):
        refused = (
            r"expected a checkpoint written under entropy control \(resume_with_new_rule=True .*which plain TRL wrote"
        )
        with pytest.raises(ValueError, match=refused):
            controlled(tiny_decoder, tmp_path / "ours", rule).train(resume_from_checkpoint=folder)
        with pytest.raises(ValueError, match=r"received .*checkpoint-4, which plain TRL wrote"):
            controlled(tiny_decoder, tmp_path / "plain", rule).train(resume_from_checkpoint=True)
    trainer = controlled(tiny_decoder, tmp_path / "ours", resume_with_new_rule=True)
    with pytest.warns(UserWarning, match="plain TRL wrote it, so the rule begins without memory"):
        trainer.train(resume_from_checkpoint=folder)
    assert torch.equal(weights(trainer), expected)
    trainer = controlled(tiny_decoder, tmp_path / "masked", "clip-b(mu=0.1)", resume_with_new_rule=True)
    (tmp_path / "plain" / "checkpoint-2" / "optimizer.pt").unlink()
    with pytest.warns(UserWarning, match="; it has no optimizer, which begins anew"):
        trainer.train(resume_from_checkpoint=folder)
    assert not torch.equal(weights(trainer), expected)


def test_a_checkpoint_of_another_rule(tiny_decoder: Path, tmp_path: Path) -> None:
    before, after = "stare(target=2, adaptive=True)", "stare(target=1, adaptive=True)"
    controlled(tiny_decoder, tmp_path, before, max_steps=2).train()
    folder = str(tmp_path / "checkpoint-2")
    trainer = controlled(tiny_decoder, tmp_path, after)
    with pytest.raises(
        ValueError, match=re.escape(f"rule: expected {before!r}, the checkpoint's (resume_with_new_rule")
    ):
        trainer.train(resume_from_checkpoint=folder)
    trainer = controlled(tiny_decoder, tmp_path, after, resume_with_new_rule=True)
    with pytest.warns(
        UserWarning, match=re.escape(f"the rule was {before!r} and is {after!r}, and its memory is lost")
    ):
        trainer.train(resume_from_checkpoint=folder)
    assert trainer.state.global_step == 4
    assert trainer.rule_state is not None


def test_another_seed_of_the_rule_is_said(tiny_decoder: Path, tmp_path: Path) -> None:
    rule = "random-mask(fraction=0.5)"
    controlled(tiny_decoder, tmp_path, rule, rule_seed=3, max_steps=2).train()
    trainer = controlled(tiny_decoder, tmp_path, rule, rule_seed=4)
    with pytest.warns(UserWarning, match=r"resumed from .*checkpoint-2: rule_seed was 3 and is 4"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


@pytest.mark.parametrize(("before", "after"), [("ppo-clip", "clip-b(mu=0.1)"), ("clip-b(mu=0.1)", "ppo-clip")])
def test_another_rule_does_not_act_on_what_the_old_one_decided(
    tiny_decoder: Path, tmp_path: Path, before: str, after: str
) -> None:
    """Inside a generation batch: a new batch is made of its prompts, and all of it is under the new rule."""
    reused = {"num_iterations": 2, "observe": ["gspo"], "max_steps": 2}
    controlled(tiny_decoder, tmp_path, before, **reused).train()
    trainer = controlled(tiny_decoder, tmp_path / "new", after, **reused, resume_with_new_rule=True)
    counted = []
    decide = trainer._generation.decide
    trainer._generation.decide = lambda *given: counted.append(trainer.state.global_step) or decide(*given)
    with pytest.warns(UserWarning, match="the rest of a generation batch, decided upon by the old rule, is lost"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert counted == [1]
