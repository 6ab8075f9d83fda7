"""The configuration of a controlled trainer: TRL's own with the rule and what is measured about it."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from trl import GRPOConfig, RLOOConfig, RLOOTrainer


@dataclass
class ControlOptions:
    """The options of entropy control.

    Attributes:
        rule: The rule's specification, such as ``clip-b(mu=1)`` or ``clip-b|random-mask(fraction=0.01)``.
        rule_seed: Seed of rules that draw at random; every rank draws the same numbers.
        realised_change_every: Measure the realised change of entropy on the batch's own tokens at every k-th
            generation, at the price of one more forward; 0 never does.
        observe: Rules that are asked what they would drop, and change nothing.
        scoring: "batch" scores each generation batch in a forward of its own before its updates; "one-pass" inside the
            training forward, with one micro-batch per generation and rank only; "auto" in a forward that TRL makes for
            old log-probabilities, in one pass where that is exact and the trainer's methods are TRL's own, else as
            "batch".
        save_batches: Save the token statistics of every k-th generation batch, gathered over ranks, to
            ``OUTPUT_DIR/batches`` for ``entropy-theory lens``; 0 never does.
        ledger: Account for the run's on-policy entropy, batch by batch: how much of its change the updates made at
            fixed contexts, and how much came from visiting other contexts and from sampling. It costs one more forward
            for each generation batch.
        influence_every: With ``ledger``, split the fixed-context change of every k-th generation batch to first order
            into the present gradient's part, momentum and weight decay; 0 never does. It costs one more forward and
            backward for each update, and needs one process and torch's SGD, Adam or AdamW.
        resume_with_new_rule: Resume also from a checkpoint of plain TRL, of another rule or parameter, or of another
            release of this package; a warning says what is lost.
    """

    rule: str = field(default="none", metadata={"help": "Entropy-control rule, e.g. 'clip-b(mu=1)'."})
    rule_seed: int = field(default=0, metadata={"help": "Seed of rules that draw at random."})
    realised_change_every: int = field(
        default=0, metadata={"help": "Measure the realised entropy change every k generations; 0: never."}
    )
    observe: list[str] = field(
        default_factory=list, metadata={"help": "Rules that are asked what they would drop, and change nothing."}
    )
    scoring: str = field(default="auto", metadata={"help": "'batch', 'one-pass', or what costs least: 'auto'."})
    save_batches: int = field(default=0, metadata={"help": "Save every k-th generation batch for the lens; 0: never."})
    ledger: bool = field(
        default=False, metadata={"help": "Account for on-policy entropy: fixed contexts, state shift."}
    )
    influence_every: int = field(
        default=0, metadata={"help": "Split the ledger's fixed-context change every k generations; 0: never."}
    )
    resume_with_new_rule: bool = field(
        default=False, metadata={"help": "Resume also from checkpoints of plain TRL or of another rule."}
    )


OPTIONS = tuple(f.name for f in fields(ControlOptions))


@dataclass
class EntropyControlledGRPOConfig(ControlOptions, GRPOConfig):
    """TRL's GRPOConfig with `ControlOptions`; works with ``TrlParser``."""


@dataclass
class EntropyControlledRLOOConfig(ControlOptions, RLOOConfig):
    """TRL's RLOOConfig with `ControlOptions`; works with ``TrlParser``."""


def default_config(trainer: type) -> Any:
    """Make the configuration of a trainer that was given none."""
    kind = EntropyControlledRLOOConfig if issubclass(trainer, RLOOTrainer) else EntropyControlledGRPOConfig
    return kind("entropy-control")
