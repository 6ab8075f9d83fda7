"""What recorded rollouts would do to entropy, token by token, and what each control rule would make of it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch
import tyro
from torch import Tensor

from entropy_theory.control import Rule, RuleOutput, TokenBatch, lens, rule, rule_class
from entropy_theory.control.effects import Effects, predicted_effects
from entropy_theory.control.group_advantages import ScaleRewards
from entropy_theory.control.lens import default_rules
from entropy_theory.control.thresholds import ThresholdScan, scan_threshold
from entropy_theory.errors import at_least, finite_number, invalid, reading
from entropy_theory.inspection import scoring
from entropy_theory.inspection.influence import MeasuredInfluence, measure_influence
from entropy_theory.inspection.rollouts import Rollouts, advantages_of, read_rollouts
from entropy_theory.inspection.tokens import Tokenised, TokenOptions, token_assumptions, tokenise
from entropy_theory.records import read_json
from entropy_theory.vocab import TokenStatistics
from entropy_theory.vocab.statistics import FIELDS, SECOND_ORDER_FIELDS

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
      entropy-theory inspect runs/train --model runs/train/model --influence --save-batch runs/batch.safetensors

    How the completions were sampled is read from the log where it says so (train --log-completions does) and can be
    given otherwise; what is assumed is printed and stands on the page.

    Attributes:
        rollouts: The file, or the folder of a TRL run.
        model: Folder or hub name of the causal language model, or smollm2; best the one that wrote the completions.
        tokenizer: Folder or hub name of the tokenizer; default: the model's.
        rule: Rules to switch between in the page; default: nine of them. The lens table always has all.
        temperature: Temperature of the policy whose statistics are shown, that of the sampling; default: the log's, or
            1.
        scale_rewards: What the rewards' deviation is taken over when advantages are not recorded, as in TRL; default:
            the log's, or group.
        rewards: Columns of a parquet file whose weighted sum is the reward; default: the log's, or the columns whose
            sum gives the recorded advantages.
        reward_weights: Weight of each of --rewards; default: the log's, or 1.
        step: Step of a run's log; default: the last.
        end_token: Score the end token after each completion, which logged text has lost.
        end_token_ids: Tokens that may end a completion, of which the likeliest is scored; default: the log's, or those
            of the model's tokenizer and generation configuration.
        max_completion_length: Length limit of the sampling; completions of that length get no end token; default: the
            log's.
        chat_template_kwargs: Further arguments of the chat template, as a JSON object; default: the log's, or none.
        tools: JSON file with the schemas of tools that the chat template was given; default: the log's, or none.
        influence: Also measure what each token does to mean entropy through the model's shared weights: D, beside
            −S_c/n of the tabular theory. Costs a backward and a forward-mode pass over all tokens.
        batch_tokens: Tokens scored at once, padding included: the memory bound.
        dtype: Arithmetic of the model.
        max_completions: Completions drawn in the page; of more, whole groups are drawn at random.
        seed: Seed of that draw, of the bootstrap and of rules that draw.
        scores: Folder that keeps the statistics, so that a killed run resumes and another --rule takes seconds;
            default: OUT with the ending .scores.
        save_batch: File for the statistics as a TokenBatch, for the lens; default: none is written.
        out: The page (.html) or table (.csv, .parquet).
    """

    rollouts: tyro.conf.Positional[Path]
    model: str
    tokenizer: str | None = None
    rule: tuple[str, ...] = ()
    temperature: float | None = None
    scale_rewards: ScaleRewards | None = None
    rewards: tuple[str, ...] = ()
    reward_weights: tuple[float, ...] = ()
    step: int | None = None
    end_token: bool = True
    end_token_ids: tuple[int, ...] = ()
    max_completion_length: int | None = None
    chat_template_kwargs: str | None = None
    tools: Path | None = None
    influence: bool = False
    batch_tokens: int = 8192
    dtype: Literal["float32", "bfloat16"] = "float32"
    max_completions: int = 2000
    seed: int = 0
    scores: Path | None = None
    save_batch: Path | None = None
    out: Path = Path("runs/inspect.html")

    def __post_init__(self) -> None:
        """Refuse what no inspection can use, before anything is loaded."""
        if self.out.suffix not in SUFFIXES or self.out.is_dir():
            raise invalid("out", f"a file ending in {', '.join(SUFFIXES)}", self.out)
        if self.save_batch is not None and (self.save_batch.suffix != ".safetensors" or self.save_batch.is_dir()):
            raise invalid("save_batch", "a file ending in .safetensors", self.save_batch)
        finite_number(self, "temperature")
        at_least(self, 1, "batch_tokens", "max_completions", "max_completion_length")
        at_least(self, 0, "seed", "step")
        if any(token < 0 for token in self.end_token_ids):
            raise invalid("end_token_ids", "token ids >= 0", self.end_token_ids)
        self.template_arguments()

    def template_arguments(self) -> dict[str, Any] | None:
        """The arguments of the chat template that were given; None when none were."""
        if self.chat_template_kwargs is None:
            return None
        with reading("chat_template_kwargs", "a JSON object", self.chat_template_kwargs):
            arguments = json.loads(self.chat_template_kwargs)
        if not isinstance(arguments, dict):
            raise invalid("chat_template_kwargs", "a JSON object", repr(self.chat_template_kwargs))
        return arguments

    def tool_schemas(self) -> list[Any] | None:
        """The schemas in the file of --tools; None without it."""
        if self.tools is None:
            return None
        schemas = read_json(self.tools)
        if not isinstance(schemas, list):
            raise invalid("tools", "a JSON list of schemas", self.tools)
        return schemas


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
        special_ids: The tokenizer's special tokens.
        temperature: T.
        assumptions: How tokens, rewards and advantages came about, and what was assumed for them, with counts.
        warnings: What the reader should know before believing the rest.
        influence: The influence of the tokens, where asked; its values are in the batch.
    """

    config: InspectConfig
    rollouts: Rollouts
    sequences: list[Tokenised]
    batch: TokenBatch
    rules: tuple[RuleView, ...]
    lens: Mapping[str, Any]
    special_ids: frozenset[int]
    temperature: float
    assumptions: tuple[str, ...]
    warnings: tuple[str, ...]
    influence: MeasuredInfluence | None = None


def inspect(config: InspectConfig, progress: Progress | None = None) -> Inspection:
    """Read, score and apply the rules.

    Ratio-based rules are applied at ratio 1, as on a batch just sampled, where most of them change nothing.

    Args:
        config: What is asked.
        progress: Called with (done, in all, words).

    Raises:
        ValueError: The rollouts, the model, the tokenizer or a rule cannot be used, found before any scoring; or a rule
            that was asked for lacks what the rollouts do not have, such as rewards.
        ImportError: The extra ``train`` is not installed.
    """
    chosen = [rule(spec) for spec in config.rule or RULES]
    rollouts = read_rollouts(
        config.rollouts, step=config.step, rewards=config.rewards, reward_weights=config.reward_weights
    )
    logged = rollouts.sampling
    scale = config.scale_rewards or logged.scale_rewards or "group"
    temperature = config.temperature or logged.temperature or 1.0
    advantages, recorded = advantages_of(rollouts, cast("ScaleRewards", scale))
    arguments, schemas = config.template_arguments(), config.tool_schemas()
    policy = scoring.load_policy(config.model, config.tokenizer, config.dtype)
    for candidate in chosen:
        candidate.check_vocabulary(policy.vocab_size)
    options = TokenOptions(
        end_token_ids=(config.end_token_ids or tuple(logged.end_token_ids or policy.end_token_ids))
        if config.end_token
        else (),
        max_completion_length=config.max_completion_length or logged.max_completion_length,
        chat_template_kwargs=(logged.chat_template_kwargs or {}) if arguments is None else arguments,
        tools=(logged.tools or []) if schemas is None else schemas,
    )
    written = tokenise(rollouts, policy.tokenizer, options)
    folder = config.scores or config.out.with_suffix(".scores")
    bounds: dict[str, Any] = {"temperature": temperature, "batch_tokens": config.batch_tokens, "progress": progress}
    statistics, sequences = scoring.score(policy, written.sequences, folder, **bounds)
    influence = measure_influence(policy, sequences, folder, **bounds) if config.influence else None
    if influence is not None:
        statistics |= {"influence": influence.values}
    batch = token_batch(written.rollouts, sequences, statistics, advantages[list(written.rows)])
    views = []
    for number, candidate in enumerate(chosen):
        if not config.rule and not _usable(candidate, batch):
            continue  # not asked for; a rule that was asked for names below what it lacks
        output = candidate.apply(batch, generator=torch.Generator().manual_seed(config.seed))
        scan = scan_threshold(candidate, batch, seed=config.seed) if candidate.threshold_parameter else None
        views.append(RuleView(candidate, output, scan))
        if progress is not None:
            progress(number + 1, len(chosen), f"rules: {candidate}")
    asked = [*chosen, *(rule_class(name)() for name in default_rules())]
    usable = {str(candidate): candidate for candidate in asked if _usable(candidate, batch)}
    source = "as an option says" if config.temperature else "as the log says" if logged.temperature else "assumed"
    return Inspection(
        config=config,
        rollouts=written.rollouts,
        sequences=sequences,
        batch=batch,
        rules=tuple(views),
        lens=lens(batch, usable.values(), seed=config.seed).to_dict(),
        special_ids=frozenset(policy.tokenizer.all_special_ids),
        temperature=temperature,
        assumptions=(
            *token_assumptions(written, sequences, options),
            *_reward_assumptions(written.rollouts, recorded, scale),
            f"The temperature is {temperature:g}, {source}.",
            *_influence_notes(influence, batch),
        ),
        warnings=tuple(_warnings(policy.vocab_size, batch, written.rollouts, recorded)),
        influence=influence,
    )


def _usable(candidate: Rule, batch: TokenBatch) -> bool:
    return all(batch.available(name) for name in candidate.needs)


def token_batch(
    rollouts: Rollouts, sequences: list[Tokenised], measured: Mapping[str, np.ndarray], advantages: np.ndarray
) -> TokenBatch:
    """Lay the statistics out with one row per completion; the ratio is 1, as for a batch just sampled."""
    lengths = torch.tensor([len(s.ids) for s in sequences])
    mask = torch.arange(int(lengths.max())).unsqueeze(0) < lengths.unsqueeze(1)

    def rows(name: str) -> Tensor:
        out = torch.zeros(mask.shape, dtype=torch.float32)
        out[mask] = torch.from_numpy(measured[name])
        return out

    statistics = TokenStatistics(**{name: rows(name) for name in (*FIELDS, *SECOND_ORDER_FIELDS)}, impl="eager")
    rewards = [item.reward for item in rollouts.items]
    return TokenBatch.from_statistics(
        statistics,
        advantages=torch.tensor(advantages, dtype=torch.float32),
        completion_mask=mask,
        old_log_probs=statistics.log_probs,
        old_entropy=statistics.entropy,
        rewards=None if None in rewards else torch.tensor(rewards, dtype=torch.float32),
        group_ids=torch.from_numpy(rollouts.group_ids),
        influence=rows("influence") if "influence" in measured else None,
    )


def _influence_notes(influence: MeasuredInfluence | None, batch: TokenBatch) -> list[str]:
    if influence is None:
        return []
    how = {
        "jvp": "a forward-mode derivative",
        "difference": "central differences, because a layer has no forward-mode derivative, with an estimated error of "
        f"{influence.error:.1g}",
    }
    return [
        f"The influence D is on the mean entropy of the contexts of all {int(batch.completion_mask.sum()):,} tokens, "
        f"through all {influence.weights:,} weights, by {how[influence.method]}. Summed over a batch of tokens it is "
        f"within {influence.check:.1g} of the same by reverse mode, relative to the sum of sizes."
    ]


def _reward_assumptions(rollouts: Rollouts, recorded: bool, scale: str) -> list[str]:
    columns = rollouts.rewards
    reasons = {
        "given": "as the log or an option says",
        "only": "the only candidate",
        "advantages": "whose advantages are the recorded ones",
        "none": "assumed",
    }
    sentences = []
    if columns.others or len(columns.names) > 1 or any(weight != 1 for weight in columns.weights):
        others = f"; not part of it: {', '.join(columns.others)}" if columns.others else ""
        sentences.append(f"The reward is {columns}, {reasons[columns.evidence]}{others}.")
    computed = f"computed from the rewards as TRL does (scale: {scale})"
    groups = "those of the file" if rollouts.grouped_by == "group" else "the completions of equal prompts"
    sentences.append(f"Advantages are {'as recorded' if recorded else computed}; groups are {groups}.")
    return sentences


def _warnings(vocab_size: int, batch: TokenBatch, rollouts: Rollouts, recorded: bool) -> list[str]:
    mask = batch.completion_mask
    warnings = [f"Left out: {reason}." for reason in rollouts.left_out]
    if recorded and rollouts.rewards.evidence == "none":
        warnings.append(
            f"The recorded advantages are not those of the reward {rollouts.rewards}: the reward functions or their "
            "weights are others (--rewards, --reward-weights). Rules that read rewards see wrong ones."
        )
    mean = float(batch.log_probs[mask].double().mean())
    if mean < -math.log(vocab_size):
        warnings.append(
            f"The model gives these tokens a mean log-probability of {mean:.2f}, less than a uniform guess "
            f"({-math.log(vocab_size):.2f}): it is hardly the model that wrote them, or its tokenizer is another."
        )
    if not bool(batch.token_advantages[mask].any()):
        warnings.append("Every advantage is 0: this batch has no policy gradient, and nothing would move.")
    return warnings


def effects(view: RuleView | None, batch: TokenBatch) -> Effects:
    """Predict what each token does to entropy for a unit step on its position alone (`predicted_effects`).

    Args:
        view: A rule's output, or None for no control.
        batch: The statistics.

    Returns:
        The effects, (B, T), float64, nats per unit of step size; 0 outside the completions.
    """
    effects = predicted_effects(
        batch.token_advantages if view is None else view.output.coefficients,
        batch.centered_scores(),
        entropy_coefficients=None if view is None else view.output.entropy_coefficients,
        sum_squared_discriminant=batch.sum_squared_discriminant,
    )
    padding = ~batch.completion_mask
    return Effects(effects.gradient.masked_fill(padding, 0.0), effects.entropy.masked_fill(padding, 0.0))
