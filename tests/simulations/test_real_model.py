"""The experiments on the real model: order of the tasks, tables over a vocabulary, summaries of what is there."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch
from simulation_scripts import load

from entropy_theory.dynamics.bank import policy_statistics
from entropy_theory.testbed import decoder

pytest.importorskip("trl", reason="needs the extra 'train'")
script, runs = load("real_model"), load("real_model_runs")


def test_a_whole_first_seed_comes_first() -> None:
    tasks = script.tasks(script.RealModelConfig())
    assert len(set(tasks)) == len(tasks)
    arms = [task for task in tasks if isinstance(task, runs.ModelRun) and task.held_out]
    soon = script.ARMS[: -script.LATER]
    assert tasks[: len(soon)] == arms[: len(soon)]
    assert [(task.rule, task.num_iterations) for task in tasks[: len(soon)]] == list(soon)
    assert {task.seed for task in arms[: len(soon)]} == {0}
    assert [(task.rule, task.num_iterations) for task in tasks[-script.LATER :]] == list(script.ARMS[-script.LATER :])
    seeds = 3
    assert {(t.rule, t.num_iterations, t.seed) for t in arms} == {(*a, s) for a in script.ARMS for s in range(seeds)}
    later = tasks.index(arms[len(soon)])
    assert all(isinstance(task, runs.CutInModel) or task in arms for task in tasks[later:])


def test_kinds_of_tokens() -> None:
    tokenizer = decoder.build_tokenizer()
    kinds = {tokenizer.decode([t]): runs.KINDS[runs.kind_of(tokenizer, t)] for t in range(len(tokenizer))}
    assert kinds["7"] == "digits"
    assert kinds["+"] == "other signs"
    assert kinds[tokenizer.eos_token] == "special"


def test_tables_add_up_over_the_vocabulary() -> None:
    """Against sums over the same policies, written out by position in float64 NumPy."""
    tokenizer = decoder.build_tokenizer()
    size, generator = len(tokenizer), torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(6, size, generator=generator, dtype=torch.float64)
    tokens = torch.randint(size, (6,), generator=generator)
    bank, table = policy_statistics(logits), runs.Table(tokenizer, size)
    table.see(bank, tokens, bank.at(tokens[:, None]))
    measured = table.result()
    z = logits.numpy()
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    H = -(p * np.log(p)).sum(1, keepdims=True)
    S = p * (H + np.log(p))
    N = (p * S).sum(1, keepdims=True)
    positions = np.array(measured["positions"])
    assert positions.sum(0)[:3] == pytest.approx([6, H.sum(), N.sum()], rel=1e-4)  # rounded to five digits
    assert np.array(measured["vocabulary"]).sum((0, 1)) == pytest.approx(
        [6, 0, (S > 0).sum(), (S > N).sum()], rel=1e-4, abs=1e-4
    )
    own = np.arange(6), tokens.numpy()
    expected = [6, p[own].sum(), S[own].sum(), (S - N)[own].sum(), ((S - N)[own] > 0).sum()]
    assert np.array(measured["sampled"]).sum((0, 1)) == pytest.approx(expected, rel=1e-3)
    assert sum(map(sum, measured["centered_histogram"])) == len(measured["points"]) == 6
    for row, count in zip(measured["positions"], np.array(measured["sampled"])[:, :, 0].sum(1), strict=True):
        assert row[0] == count


def made_up(rule: str, seed: int, entropy: list[float], held_out: int = 4) -> dict[str, Any]:
    """A finished run, as its file has it."""
    steps = len(entropy)
    curves = {name.split("/")[-1]: [1.0] * steps for name in runs.COLUMNS} | {"entropy": entropy}
    policy = {"held_out": {"pass@1": 0.5, "pass@8": 0.75, "distinct": 3.0}} if held_out else {}
    task = asdict(runs.ModelRun(rule, seed, steps, held_out=held_out))
    return {"task": task, "result": {"curves": curves, "observed": {}, "policy": policy}}


def test_a_summary_of_what_is_there() -> None:
    """Two arms, of which one lacks a seed, and a condition; nothing else has been run."""
    start, fall = [2.0] * 5, [1.0] * 10
    some = [
        made_up("none", 0, start + fall),
        made_up("none", 1, start + [0.5] * 10),
        made_up(script.CLIP_B, 1, start + [0.75] * 10),
        made_up(script.rule_of("positive", "positive"), 0, [2.0, 1.5, 1.0], held_out=0),
        made_up(script.rule_of("positive", "positive"), 1, [2.0, 1.75, 1.5], held_out=0),
    ]
    summary = script.summarise(some)
    assert summary["runs"] == {"arms": 3, "conditions": 2, "samplers": 0, "cuts": 0}
    assert summary["arms"]["none"]["entropy"]["values"] == [1.0, 0.5]
    paired = summary["arms"][script.CLIP_B]["entropy_over_base"]
    assert (paired["mean"], paired["half_width"]) == (0.25, None)  # of the seed that both have
    (condition,) = summary["conditions"]
    assert condition["trend"]["values"] == pytest.approx([-0.5, -0.25])
    assert condition["z"] == pytest.approx(-3.0)  # mean −.375, standard error .125
    assert condition["agrees"]
    script.show(summary)
