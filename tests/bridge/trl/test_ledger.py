"""The trainer's ledger against plain forwards, over layouts, ranks, empty batches and interruptions."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from ledger_runs import logged, trained
from trl import GRPOConfig, GRPOTrainer
from trl_runs import arguments, build, closeness, parameters_after

from entropy_theory.bridge import trl as bridge

LAYOUTS: dict[str, dict[str, Any]] = {
    "one pass": {"scoring": "one-pass"},
    "own forward": {"scoring": "batch", "temperature": 1.3},
    "micro-batches": {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 16},
    "two passes": {"num_iterations": 2, "max_steps": 6},
    "two steps, two passes": {"steps_per_generation": 2, "num_iterations": 2, "per_device_train_batch_size": 16,
                              "max_steps": 12},
    "two batches a step": {"gradient_accumulation_steps": 2, "steps_per_generation": 1, "max_steps": 3},
    "steps across batches": {"gradient_accumulation_steps": 2, "steps_per_generation": 3,
                             "per_device_train_batch_size": 16, "max_steps": 6, "generation_batch_size": None},
}  # fmt: skip
FLOAT32 = 2e-6  # sums of float32 entropies of the order of 1, in another order


def means(values: torch.Tensor, mask: torch.Tensor) -> float:
    return float(values[mask].mean())


def clustered_error(values: torch.Tensor, mask: torch.Tensor, groups: torch.Tensor) -> float:
    """The jackknife over groups to first order: the spread of influence values of the mean."""
    count = mask.sum()
    centred = torch.where(mask, values - values[mask].mean(), 0.0).sum(1) / count
    numbers = groups.unique()
    influence = torch.stack([centred[groups == g].sum() for g in numbers])
    return math.sqrt(float((influence**2).sum()) * len(numbers) / (len(numbers) - 1))


def check_entries(account: list[dict[str, torch.Tensor]], entries: list[dict[str, float]]) -> None:
    """Every entry is what the account's batches give by the definitions."""
    assert len(entries) == len(account) >= 3
    fixed = remainder = 0.0
    for entry, batch in zip(entries, account, strict=True):
        assert entry["entropy"] == pytest.approx(means(batch["before"], batch["mask"]), abs=FLOAT32)
        assert abs(entry["closing_error"]) < 1e-14
    for entry, last, batch in zip(entries[1:], account, account[1:], strict=False):
        after = means(last["after"], last["mask"])
        assert entry["fixed"] == pytest.approx(after - means(last["before"], last["mask"]), abs=FLOAT32)
        assert entry["remainder"] == pytest.approx(means(batch["before"], batch["mask"]) - after, abs=FLOAT32)
        errors = [clustered_error(each[when], each["mask"], each["groups"])
                  for each, when in ((last, "after"), (batch, "before"))]  # fmt: skip
        assert entry["remainder_se"] == pytest.approx(math.hypot(*errors), rel=1e-4)
        fixed, remainder = fixed + entry["fixed"], remainder + entry["remainder"]
        assert entry["cumulative_fixed"] == pytest.approx(fixed, abs=1e-14)
        assert entry["cumulative_remainder"] == pytest.approx(remainder, abs=1e-14)
        # the account closes on the logged entropies
        assert entries[0]["entropy"] + fixed + remainder == pytest.approx(entry["entropy"], abs=1e-14)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_entries_are_those_of_plain_forwards(tiny_decoder: Path, tmp_path: Path, layout: str) -> None:
    trainer = trained(tiny_decoder, tmp_path, **LAYOUTS[layout])
    assert trainer._live.one_pass == (layout == "one pass")
    check_entries(trainer.account, trainer.entries)
    moved = [abs(entry["fixed"]) for entry in trainer.entries[1:]]
    assert max(moved) > 100 * FLOAT32


@pytest.mark.parametrize("optim", ["sgd", "adamw_torch"])
@pytest.mark.parametrize("layout", ["one pass", "two passes", "micro-batches"])
def test_the_first_order_is_what_a_small_step_does(tiny_decoder: Path, tmp_path: Path, layout: str, optim: str) -> None:
    """At a small rate now + momentum + decay is the fixed change, up to second order and float32 forwards."""
    rate = {"sgd": 5e-3, "adamw_torch": 4e-5}[optim]
    options = LAYOUTS[layout] | {"optim": optim, "learning_rate": rate, "influence_every": 1}
    trainer = trained(tiny_decoder, tmp_path, **options)
    entries = logged(trainer)
    check_entries(trainer.account, entries)
    for entry in entries[1:]:
        parts = entry["now"] + entry["momentum"] + entry["decay"]
        assert entry["curvature"] == pytest.approx(entry["fixed"] - parts, abs=1e-15)
        assert abs(entry["curvature"]) < 0.05 * abs(entry["fixed"]) + 10 * FLOAT32
        assert entry["decay"] != 0
    assert max(abs(entry["fixed"]) for entry in entries[1:]) > 100 * FLOAT32
    assert any(entry["momentum"] != 0 for entry in entries[1:]) == (optim != "sgd")


def test_every_second_batch_is_split(tiny_decoder: Path, tmp_path: Path) -> None:
    trainer = trained(tiny_decoder, tmp_path, influence_every=2, max_steps=5)
    assert ["now" in entry for entry in logged(trainer)] == [False, True, False, True, False]


@pytest.mark.parametrize("scoring", ["one-pass", "batch"])
def test_a_batch_that_nobody_judged_belongs_to_the_one_before(tiny_decoder: Path, tmp_path: Path, scoring: str) -> None:
    calls = []

    def sometimes(completions: Sequence[str], target: Sequence[int], **_: Any) -> list[float | None]:
        calls.append(len(completions))
        rewards: list[float | None] = list(closeness(completions, target))
        if len(calls) == 2:
            return [None] * len(rewards)
        return [None if place % 8 == 3 else reward for place, reward in enumerate(rewards)]

    options = {"reward": sometimes, "scoring": scoring, "influence_every": 1, "learning_rate": 1e-4}
    trainer = trained(tiny_decoder, tmp_path, **options)
    assert [line.get("entropy_control/empty_batch") for line in trainer.state.log_history][:4] == [None, 1, None, None]
    entries = logged(trainer)
    check_entries(trainer.account, entries)  # its change is measured after the update on the empty batch
    # which is momentum and decay alone: with them the first order holds
    assert abs(entries[1]["curvature"]) < 0.05 * abs(entries[1]["fixed"]) + 10 * FLOAT32
    assert abs(entries[1]["momentum"]) > 100 * FLOAT32


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_ledger_changes_no_bit_of_a_run(tiny_decoder: Path, tmp_path: Path, layout: str) -> None:
    ledger = {"ledger": True, "influence_every": 1}
    outcome = []
    for changes in ({}, ledger):
        options = arguments(tmp_path, **({"max_steps": 4} | LAYOUTS[layout] | changes))
        config = bridge.EntropyControlledGRPOConfig(**options)
        trainer = build(bridge.EntropyControlledGRPOTrainer, tiny_decoder, config, reward_funcs=closeness)
        outcome.append(parameters_after(trainer))
    assert torch.equal(*outcome)


class Plain(bridge.EntropyControlledGRPOTrainer):
    """Trained by `trained` without the account of plain forwards."""


@pytest.mark.parametrize(("layout", "at"), [("one pass", 2), ("two passes", 3), ("two passes", 4),
                                            ("two batches a step", 2), ("steps across batches", 2)])  # fmt: skip
def test_a_resumed_run_has_the_same_ledger(tiny_decoder: Path, tmp_path: Path, layout: str, at: int) -> None:
    options = LAYOUTS[layout] | {"save_strategy": "steps", "save_steps": 1, "influence_every": 1, "kind": Plain}
    whole = trained(tiny_decoder, tmp_path / "whole", **options)
    checkpoint = tmp_path / "whole" / f"checkpoint-{at}"
    resumed = trained(tiny_decoder, tmp_path / "resumed", **options, resume=str(checkpoint))
    assert logged(resumed) == logged(whole)
    assert len(logged(whole)) > at // LAYOUTS[layout].get("num_iterations", 1)


def test_resumed_where_the_next_batch_is_empty(tiny_decoder: Path, tmp_path: Path) -> None:
    """The tokens of the batch before the checkpoint are scored again after it."""

    def run(out: Path, empty_at: int, **more: Any) -> list[dict[str, float]]:
        calls = []

        def reward(completions: Sequence[str], target: Sequence[int], **_: Any) -> list[float | None]:
            calls.append(1)
            return [None] * len(target) if len(calls) == empty_at else list(closeness(completions, target))

        options = {"save_strategy": "steps", "save_steps": 1, "influence_every": 1, "kind": Plain, "reward": reward}
        return logged(trained(tiny_decoder, out, **options, **more))

    whole = run(tmp_path / "whole", 3, max_steps=5)
    resumed = run(tmp_path / "resumed", 1, max_steps=5, resume=str(tmp_path / "whole" / "checkpoint-2"))
    assert len(whole) == 4
    assert resumed == whole


def test_a_ledger_that_begins_at_a_checkpoint(tiny_decoder: Path, tmp_path: Path) -> None:
    options = {"save_strategy": "steps", "save_steps": 2, "kind": Plain}
    trained(tiny_decoder, tmp_path, **options, ledger=False)
    with pytest.warns(UserWarning, match="the ledger begins here, because the checkpoint holds none"):
        resumed = trained(tiny_decoder, tmp_path, **options, resume=str(tmp_path / "checkpoint-2"))
    entries = logged(resumed)
    assert len(entries) == 2
    assert "fixed" not in entries[0]
    shutil.rmtree(tmp_path)


def test_two_ranks_keep_one_ledger(tiny_decoder: Path, tmp_path: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    program = Path(__file__).with_name("ledger_runs.py")
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(program)]
    done = subprocess.run(
        [sys.executable, *command, str(tiny_decoder), str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    joined = []
    for parts in zip(*(rank["account"] for rank in ranks), strict=True):
        names, longest = ("before", "after", "mask"), max(part["mask"].shape[1] for part in parts)
        pad = {n: [torch.nn.functional.pad(p[n], (0, longest - p[n].shape[1])) for p in parts if n in p] for n in names}
        joined.append({n: torch.cat(values) for n, values in pad.items() if values})
        joined[-1]["groups"] = torch.cat([part["groups"] for part in parts])
    assert len(joined[0]["groups"].unique()) == 8
    check_entries(joined, ranks[0]["entries"])


def test_refused_before_any_work(tiny_decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def config(**options: Any) -> Any:
        return bridge.EntropyControlledGRPOConfig(**arguments(tmp_path, **options))

    for options, message in (
        ({"influence_every": 2}, "ledger: expected True beside influence_every = 2"),
        ({"influence_every": -1, "ledger": True}, "influence_every: expected an integer >= 0, received -1"),
        ({"influence_every": 1, "ledger": True, "fp16": True}, "influence_every: expected 0: .*received 1 with fp16"),
    ):
        with pytest.raises(ValueError, match=message):
            bridge.EntropyControlledGRPOTrainer("no/such-model", closeness, config(**options))
    monkeypatch.setattr(GRPOConfig, "world_size", property(lambda _: 2))
    given = config(influence_every=1, ledger=True, per_device_train_batch_size=16)
    with pytest.raises(ValueError, match="received 1 with world_size = 2"):
        bridge.EntropyControlledGRPOTrainer("no/such-model", closeness, given)


def test_an_optimizer_whose_steps_cannot_be_split_is_refused(tiny_decoder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="optimizer: expected torch's SGD, Adam or AdamW, received RMSprop"):
        trained(tiny_decoder, tmp_path, influence_every=1, optim="rmsprop")
    trained(tiny_decoder, tmp_path, optim="rmsprop", max_steps=1)  # without the split any will do


def test_attached_to_a_trainer_that_exists(tiny_decoder: Path, tmp_path: Path) -> None:
    trainer = build(GRPOTrainer, tiny_decoder, GRPOConfig(**arguments(tmp_path, max_steps=3)), reward_funcs=closeness)
    bridge.attach(trainer, "none", ledger=True).train()
    assert len(logged(trainer)) == 3
