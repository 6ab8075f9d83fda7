"""What recorded rollouts would do to entropy, token by token, and what each control rule would make of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import tyro
from torch import Tensor

from entropy_theory.control import Rule, RuleOutput, TokenBatch, lens, rule, rule_class
from entropy_theory.control.lens import default_rules
from entropy_theory.control.thresholds import ThresholdScan, scan_threshold
from entropy_theory.errors import invalid
from entropy_theory.inspection import scoring
from entropy_theory.inspection.rollouts import Rollouts, ScaleRewards, Tokenised, advantages_of, read_rollouts, tokenise

if TYPE_CHECKING:
    from entropy_theory.inspection.scoring import Progress

RULES = (
    "clip-b(mu=1)",
    "clip-v(mu=2, max_fraction=None)",
    "high-entropy",
    "random-mask(fraction=0.02)",
    "stare",
    "entropy-flow",
    "entropy-budget",
    "w-reinforce",
    "entropy-bonus",
)
"""Rules that the page can switch to unless others are asked for; the clipping thresholds are those of the demo."""

SUFFIXES = (".html", ".csv", ".parquet")


@dataclass(frozen=True)
class InspectConfig:
    """See which tokens of your rollouts drive entropy up or down, and what each control rule would do to them.

    Reads completions with their rewards, scores them with the model, and writes one HTML page that works from disk, or
    a table with one row per token. Rollouts are JSON lines with prompt, completion, reward and perhaps group, or what
    TRL logs with log_completions (train --log-completions): a parquet file, or the folder of the run. Examples:

      entropy-theory inspect rollouts.jsonl --model Qwen/Qwen2.5-0.5B-Instruct
      entropy-theory inspect runs/train --model runs/train/model --rule "clip-b(mu=1)" steer --out runs/inspect.html
      entropy-theory inspect rollouts.jsonl --model runs/train/model --out tokens.parquet

    Attributes:
        rollouts: The file, or the folder of a TRL run.
        model: Folder or hub name of the causal language model, or smollm2; best the one that wrote the completions.
        tokenizer: Folder or hub name of the tokenizer; default: the model's.
        rule: Rules to switch between in the page; default: nine of them. The lens table always has all.
        temperature: Temperature of the policy whose statistics are shown: that of the sampling.
        scale_rewards: What the rewards' deviation is taken over when advantages are not recorded, as in TRL.
        rewards: Columns of a parquet file whose sum is the reward.
        step: Step of a run's log; default: the last.
        end_token: Score the end token after each completion, which logged text has lost.
        max_completion_length: Length limit of the sampling; completions of that length get no end token.
        batch_tokens: Tokens scored at once, padding included: the memory bound.
        dtype: Arithmetic of the model.
        max_completions: Completions drawn in the page; of more, whole groups are drawn at random.
        seed: Seed of that draw, of the bootstrap and of rules that draw.
        scores: Folder that keeps the statistics, so that a killed run goes on and another --rule takes seconds;
            default: OUT with the ending .scores.
        out: The page (.html) or table (.csv, .parquet).
    """

    rollouts: tyro.conf.Positional[Path]
    model: str
    tokenizer: str | None = None
    rule: tuple[str, ...] = ()
    temperature: float = 1.0
    scale_rewards: ScaleRewards = "group"
    rewards: tuple[str, ...] = ()
    step: int | None = None
    end_token: bool = True
    max_completion_length: int | None = None
    batch_tokens: int = 8192
    dtype: Literal["float32", "bfloat16"] = "float32"
    max_completions: int = 2000
    seed: int = 0
    scores: Path | None = None
    out: Path = Path("runs/inspect.html")

    def __post_init__(self) -> None:
        """Refuse what no inspection can use, before anything is loaded."""
        if self.out.suffix not in SUFFIXES:
            raise invalid("out", f"a file ending in {', '.join(SUFFIXES)}", self.out)
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise invalid("temperature", "a finite number > 0", self.temperature)
        for name in ("batch_tokens", "max_completions"):
            if getattr(self, name) < 1:
                raise invalid(name, "an integer >= 1", getattr(self, name))
        if self.max_completion_length is not None and self.max_completion_length < 1:
            raise invalid("max_completion_length", "an integer >= 1", self.max_completion_length)


@dataclass(frozen=True, eq=False)
class RuleView:
    """What one rule makes of the rollouts.

    Attributes:
        rule: The rule.
        output: Its coefficients, masks and counts.
        scan: Its masks along its threshold, when it is a mask with one.
    """

    rule: Rule
    output: RuleOutput
    scan: ThresholdScan | None


@dataclass(frozen=True, eq=False)
class Inspection:
    """Rollouts with their statistics and rules.

    Attributes:
        config: What was asked.
        rollouts: What was read.
        sequences: The same in tokens.
        batch: The statistics, one row per completion.
        rules: The rules to switch between.
        lens: The lens table over all rules, as data.
        recorded_advantages: Whether A came with the rollouts.
        special_ids: The tokenizer's special tokens.
        warnings: What the reader should know before believing the rest.
    """

    config: InspectConfig
    rollouts: Rollouts
    sequences: list[Tokenised]
    batch: TokenBatch
    rules: tuple[RuleView, ...]
    lens: Mapping[str, Any]
    recorded_advantages: bool
    special_ids: frozenset[int]
    warnings: tuple[str, ...]


def inspect(config: InspectConfig, progress: Progress | None = None) -> Inspection:
    """Read, score and apply the rules.

    Rules of the live ratio are applied at ratio 1, as on a batch just sampled, where most of them change nothing.

    Args:
        config: What is asked.
        progress: Called with (done, in all, words).

    Raises:
        ValueError: The rollouts, the model, the tokenizer or a rule cannot be used, said before any scoring; or a rule
            that was asked for lacks what the rollouts do not have, such as rewards.
        ImportError: The extra ``train`` is not installed.
    """
    chosen = [rule(spec) for spec in config.rule or RULES]
    rollouts = read_rollouts(config.rollouts, step=config.step, rewards=config.rewards)
    advantages, recorded = advantages_of(rollouts, config.scale_rewards)
    policy = scoring.load_policy(config.model, config.tokenizer, config.dtype)
    sequences = tokenise(
        rollouts, policy.tokenizer, end_token=config.end_token, max_completion_length=config.max_completion_length
    )
    found = scoring.score(
        policy,
        sequences,
        config.scores or config.out.with_suffix(".scores"),
        temperature=config.temperature,
        batch_tokens=config.batch_tokens,
        progress=progress,
    )
    batch = token_batch(rollouts, sequences, found, advantages)
    views = []
    for number, one in enumerate(chosen):
        if not config.rule and not _usable(one, batch):
            continue  # unasked; one that was asked for says below what it lacks
        output = one.apply(batch, generator=torch.Generator().manual_seed(config.seed))
        scan = scan_threshold(one, batch, seed=config.seed) if one.threshold_parameter else None
        views.append(RuleView(one, output, scan))
        if progress is not None:
            progress(number + 1, len(chosen), f"rules: {one}")
    asked = [*chosen, *(rule_class(name)() for name in default_rules())]
    usable = {str(one): one for one in asked if _usable(one, batch)}
    return Inspection(
        config=config,
        rollouts=rollouts,
        sequences=sequences,
        batch=batch,
        rules=tuple(views),
        lens=lens(batch, usable.values(), seed=config.seed).to_dict(),
        recorded_advantages=recorded,
        special_ids=frozenset(policy.tokenizer.all_special_ids),
        warnings=tuple(_warnings(policy.vocab_size, batch)),
    )


def _usable(one: Rule, batch: TokenBatch) -> bool:
    return all(batch.available(name) for name in one.needs)


def token_batch(
    rollouts: Rollouts, sequences: list[Tokenised], found: Mapping[str, np.ndarray], advantages: np.ndarray
) -> TokenBatch:
    """Lay the statistics out with one row per completion; the ratio is 1, as for a batch just sampled."""
    lengths = torch.tensor([len(s.ids) for s in sequences])
    mask = torch.arange(int(lengths.max())).unsqueeze(0) < lengths.unsqueeze(1)

    def rows(name: str) -> Tensor:
        out = torch.zeros(mask.shape, dtype=torch.float32)
        out[mask] = torch.from_numpy(found[name])
        return out

    log_probs, entropy = rows("log_probs"), rows("entropy")
    rewards = [item.reward for item in rollouts.items]
    return TokenBatch(
        log_probs=log_probs,
        entropy=entropy,
        advantages=torch.tensor(advantages, dtype=torch.float32),
        completion_mask=mask,
        old_log_probs=log_probs,
        old_entropy=entropy,
        baseline=rows("baseline"),
        discriminant=rows("discriminant"),
        centered_discriminant=rows("centered_discriminant"),
        sum_squared_discriminant=rows("sum_squared_discriminant"),
        grpo_curvature=rows("grpo_curvature"),
        rewards=None if None in rewards else torch.tensor(rewards, dtype=torch.float32),
        group_ids=torch.from_numpy(rollouts.group_ids),
    )


def _warnings(vocab_size: int, batch: TokenBatch) -> list[str]:
    mask = batch.completion_mask
    found = []
    mean = float(batch.log_probs[mask].double().mean())
    if mean < -math.log(vocab_size):
        found.append(
            f"The model gives these tokens a mean log-probability of {mean:.2f}, less than a uniform guess "
            f"({-math.log(vocab_size):.2f}): it is hardly the model that wrote them, or its tokenizer is another."
        )
    if not bool(batch.token_advantages[mask].any()):
        found.append("Every advantage is 0: this batch has no policy gradient, and nothing would move.")
    return found


def effects(view: RuleView | None, batch: TokenBatch) -> Tensor:
    """The predicted effect of each token on entropy, for a unit step on its position alone, (B, T), float64.

    ΔH_t = −g_t S_c,t + c_t Σ_i S_i²  (Theorem 3.3 and section B.11 of the theory notes), in nats per unit of step size;
    without a rule −A_t S_c,t.

    Args:
        view: A rule's output, or None for no control.
        batch: The statistics.
    """
    g = batch.token_advantages if view is None else view.output.coefficients
    found = -g.double() * batch.centered_scores().double()
    if view is not None and view.output.entropy_coefficients is not None:
        assert batch.sum_squared_discriminant is not None  # scored with second order
        found = found + view.output.entropy_coefficients.double() * batch.sum_squared_discriminant.double()
    return found.masked_fill(~batch.completion_mask, 0.0)
