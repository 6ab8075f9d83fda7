"""Ranks and micro-batches do not change what a rule does: steps on recorded completions, in four layouts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from entropy_theory.control import Pipe, TokenBatch, rule_names
from entropy_theory.control import rule as build_rule

REPLAY = Path(__file__).with_name("replay.py")
LAYOUTS = [(1, 4), (2, 1), (2, 4)]  # ranks and micro-batches; held against one rank with the whole batch of 64

# In the default run: one of each kind of statistic.
FEW = [
    "none",
    "clip-b(mu=0.5)",
    "clip-v(mu=0.1, max_fraction=0.02)",  # the cap picks the largest over all ranks
    "high-entropy",  # a quantile over all ranks
    "random-mask(match='clip-b(mu=0.5)')",
    "clip-higher",
    "kl-cov(fraction=0.1)",  # means and a top-k of the present policy, over all micro-batches
    "clip-b(mu=0.5)|ppo-clip|clip-v(mu=0.5, max_fraction=None)",  # needs the present policy's own scores
    "high-entropy|entropy-bonus(over='kept', coefficient=0.1)",
    "RLOO clip-b(mu=0.5)",
    "RLOO kl-cov(fraction=0.1)",
]
# Every rule of the registry, at settings that act on 500 tokens.
SETTINGS = {
    "clip-b": ["clip-b(mu=0.5, denominator='valid')", "clip-b(drop_fraction=0.1)"],
    "clip-v": ["clip-v(mu=0.5, max_fraction=None)", "clip-v(drop_fraction=0.1)"],
    "random-mask": ["random-mask(fraction=0.2)", "random-mask(match='ppo-clip')"],
    "clip-cov": [
        "clip-cov(fraction=0.05, lower=0.5, ratio_clip=False)",
        "clip-cov(fraction=0.05, lower=0.5, epsilon_low=0.2, epsilon_high=0.2)",
    ],
    "kl-cov": [],
    "high-entropy": ["high-entropy(share=0.5)"],
    "entropy-ratio": ["entropy-ratio", "entropy-ratio(drop_fraction=0.1)"],
    "entropy-bonus": ["entropy-bonus(coefficient=0.1)"],
    "adaptive-entropy": [
        "adaptive-entropy(initial=0.1, maximum=1, target=2)",
        "ppo-clip|adaptive-entropy(initial=0.1, maximum=1, target=2)",
    ],
    "entropy-budget": ["entropy-budget(target=0.5, gain=0.1)"],
    "entropy-floor": [
        "entropy-floor(floor=2.9)",
        "entropy-floor(floor=2.9, hysteresis=0.1)|ppo-clip",
    ],
    "gspo": ["gspo(epsilon_low=0.03, epsilon_high=0.04)"],
    "gmpo": ["gmpo(epsilon_low=0.05, epsilon_high=0.05)"],
    "dppo": ["dppo(low=0.02, high=0.02)"],
    "stare": ["stare(target=2.0)"],
    "none": [],
    "clip-higher": [],
}
OF_RLOO = ["none", "ppo-clip|clip-v(mu=0.5, max_fraction=None)", "entropy-bonus(coefficient=0.1)", "w-reinforce"]
MANY = FEW + [spec for name in rule_names() for spec in SETTINGS.get(name, [name])] + [f"RLOO {s}" for s in OF_RLOO]


def run(*command: str) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-3000:]


Updates = dict[tuple[int, int], dict[str, tuple[torch.Tensor, float]]]


def updates_of(rules: list[str], layouts: list[tuple[int, int]], model: Path, folder: Path) -> Updates:
    """One process, and one launch of two ranks, for all rules and their numbers of micro-batches."""
    (folder / "rules.json").write_text(json.dumps(rules))
    for world, launcher in ((1, []), (2, ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"])):
        parts = ",".join(str(parts) for ranks, parts in layouts if ranks == world)
        if parts:
            run(*launcher, str(REPLAY), str(model), str(folder), parts, str(folder / "rules.json"))
    return {(w, a): torch.load(folder / f"{w}x{a}.pt", weights_only=True) for w, a in layouts}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("few")


@pytest.fixture(scope="module")
def few(tiny_decoder: Path, folder: Path) -> Updates:
    return updates_of(FEW, [(1, 1), (2, 4)], tiny_decoder, folder)


@pytest.fixture(scope="module")
def many(tiny_decoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Updates:
    return updates_of(MANY, [(1, 1), *LAYOUTS], tiny_decoder, tmp_path_factory.mktemp("many"))


def assert_layouts_agree(updates: Updates, layout: tuple[int, int], rule: str) -> None:
    whole, whole_share = updates[1, 1][rule]
    parts, parts_share = updates[layout][rule]
    assert whole_share == pytest.approx(parts_share, abs=1e-9)
    # Plain TRL's own layouts differ by about 5e-6 in float32 (the order of the sums); 1e-5 leaves no room for a
    # statistic taken per rank, which moves the update by tenths.
    assert torch.linalg.norm(parts - whole) < 1e-5 * torch.linalg.norm(whole)


@pytest.mark.parametrize("rule", FEW)
def test_two_ranks_by_four_micro_batches(few: Updates, rule: str) -> None:
    assert_layouts_agree(few, (2, 4), rule)


@pytest.mark.parametrize("rule", FEW[1:])
def test_the_rules_under_test_do_something(few: Updates, rule: str) -> None:
    update, share = few[1, 1][rule]
    assert share > 0.005 or "kl-cov" in rule  # which adds a penalty and drops nothing
    parsed = build_rule(rule.removeprefix("RLOO "))
    if parsed.phase == "batch" and not parsed.entropy_term and "RLOO" not in rule:  # one step, as "none" takes
        plain, _ = few[1, 1]["none"]
        assert torch.linalg.norm(update - plain) > 1e-3 * torch.linalg.norm(plain)


def test_saved_batches_are_gathered_over_ranks(few: Updates, folder: Path) -> None:
    whole, parts = (TokenBatch.load(folder / f"batches{name}" / "batch-000000.safetensors") for name in ("1x1", "2x4"))
    assert torch.equal(whole.completion_mask, parts.completion_mask)
    assert torch.equal(whole.group_ids, parts.group_ids)
    for name in ("rewards", "advantages", "log_probs", "entropy", "centered_discriminant", "grpo_curvature"):
        one, other = getattr(whole, name), getattr(parts, name)
        if one.dim() == 2:
            one, other = one[whole.completion_mask], other[whole.completion_mask]
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)  # forwards of other shapes, in float32


@pytest.mark.slow
@pytest.mark.parametrize("rule", MANY)
@pytest.mark.parametrize("layout", LAYOUTS, ids=["1x16x4", "2x32x1", "2x8x4"])
def test_every_rule_in_every_layout(many: Updates, layout: tuple[int, int], rule: str) -> None:
    assert_layouts_agree(many, layout, rule)


def test_every_rule_of_the_registry_is_among_them() -> None:
    rules = [build_rule(spec.removeprefix("RLOO ")) for spec in MANY]
    names = {member.name for rule in rules for member in (rule.rules if isinstance(rule, Pipe) else (rule,))}
    assert names == set(rule_names())
