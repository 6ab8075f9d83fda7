"""The frozen configuration of a simulation: what it may be, and what it refuses."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from entropy_theory.control import rule as build_rule
from entropy_theory.control.group_advantages import Normalisation
from entropy_theory.dynamics import grpo, starts
from entropy_theory.dynamics.optimizers import Optimizer
from entropy_theory.errors import LARGEST_INTEGER, invalid, number_in

Initialisation = Literal["gaussian", "uniform", "zipf", "forking", "saved"]
Dtype = Literal["float64", "float32"]


@dataclass(frozen=True)
class SimulationConfig:
    """GRPO on a bank of independent softmax policies, with predicted beside realised change of entropy.

    Every policy has its own right answers, rewarded with 1. At each step it samples a group of tokens, compares their
    rewards, and moves its logits by the policy gradient as the rule leaves it. Examples:

      entropy-theory simulate toy
      entropy-theory simulate toy --rule "clip-b(mu=1)" --out runs/toy-clip-b
      entropy-theory simulate toy --iterations 2 --rule ppo-clip --out runs/toy-ppo

    Attributes:
        policies: Number of policies.
        vocab_size: Tokens per policy.
        steps: Sampled batches, one group per policy each.
        group_size: Samples per policy and batch.
        iterations: Updates per batch; from the second on the importance ratios differ from 1.
        step_size: Step of the logits, for a loss that is a mean over the group.
        rule: Entropy-control rule, such as clip-b, "clip-b(mu=1)", ppo-clip or none.
        optimizer: What moves the logits along the policy gradient; sgd: the theory's own step; natural: the step of
            the natural gradient; adam: Adam's.
        initialisation: Where the policies start; gaussian: independent normal logits; uniform: equal logits; zipf: the
            i-th token's probability falls as a power of i; forking: half of the policies nearly certain and a fifth
            above .67 nats, as the positions of a language model; saved: the logits of a file.
        logit_scale: Standard deviation of gaussian initial logits.
        zipf_exponent: The power of zipf initial policies; 0 is uniform.
        logits: File of logits to start from, safetensors with a tensor `logits` of shape (policies, vocabulary) such as
            a model's at some positions; it also sets initialisation, policies and vocab-size.
        correct_share: Share of the vocabulary that is right, drawn for each policy.
        advantage: Divide by the group's standard deviation as GRPO does (std), or only subtract its mean (mean).
        record_every: Record every k-th step; the last is always recorded.
        pairs: At most so many single policies are kept for the scatter of predicted and realised change.
        checkpoint_every: Steps between checkpoints; a run that was killed resumes from the last one and ends with the
            same numbers.
        block_elements: Logits handled at once, which bounds memory; the default fits the cache. The result does not
            depend on it.
        dtype: What the logits are stored in; all arithmetic is float64.
        device: Device of the policies, such as cpu or cuda.
        seed: Seed of policies, right answers, samples and random rules.
        out: Folder of the run.
        logits_digest: Hash of the content of `logits`, or empty; not to be given.
    """

    policies: int = 1000
    vocab_size: int = 100
    steps: int = 1000
    group_size: int = 16
    iterations: int = 1
    step_size: float = 0.1
    rule: str = "none"
    optimizer: Optimizer = "sgd"
    initialisation: Initialisation = "gaussian"
    logit_scale: float = 1.0
    zipf_exponent: float = 1.0
    logits: Path | None = None
    correct_share: float = 0.1
    advantage: Normalisation = "std"
    record_every: int = 1
    pairs: int = 4096
    checkpoint_every: int = 200
    block_elements: int = 1 << 15
    dtype: Dtype = "float64"
    device: str = "cpu"
    seed: int = 0
    out: Path = Path("runs/simulate-toy")
    logits_digest: str = field(init=False, default="")

    def __post_init__(self) -> None:
        """Refuse values that no run can use; write equal configurations alike."""
        least = {"vocab_size": 2, "group_size": 2, "pairs": 0, "seed": 0}
        for name in (
            *("policies", "vocab_size", "steps", "group_size", "iterations", "record_every", "pairs"),
            *("checkpoint_every", "block_elements", "seed"),
        ):
            value, low = getattr(self, name), least.get(name, 1)
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise invalid(name, f"an integer >= {low}", repr(value))
            if value > LARGEST_INTEGER:
                raise invalid(name, f"an integer <= {LARGEST_INTEGER}", repr(value))
        for name, bottom, top, above in (
            ("step_size", 0.0, 1e9, True),
            ("logit_scale", 0.0, 1e6, False),
            ("zipf_exponent", 0.0, 1e6, False),
            ("correct_share", 0.0, 1.0, True),
        ):
            object.__setattr__(self, name, number_in(name, getattr(self, name), bottom, top, above=above))
        if self.correct_share == 1.0:
            raise invalid("correct_share", "a number < 1: some token must be wrong", 1.0)
        for name, choices in (
            ("optimizer", get_args(Optimizer)),
            ("initialisation", get_args(Initialisation)),
            ("advantage", get_args(Normalisation)),
            ("dtype", get_args(Dtype)),
        ):
            if getattr(self, name) not in choices:
                raise invalid(name, f"one of {', '.join(choices)}", repr(getattr(self, name)))
        self._take_saved_logits()
        if self.initialisation == "forking" and self.vocab_size < 4:
            raise invalid("vocab_size", "an integer >= 4 for initialisation forking", self.vocab_size)
        rule = build_rule(self.rule)
        missing = [need for need in rule.needs if need not in grpo.AVAILABLE]
        if missing:
            raise invalid("rule", f"one that does without {', '.join(missing)}, which a bank has not", str(rule))
        rule.check_vocabulary(self.vocab_size)
        object.__setattr__(self, "rule", str(rule))
        object.__setattr__(self, "out", Path(self.out))
        _check_device(self.device)

    def _take_saved_logits(self) -> None:
        """Let the file of saved logits decide what it decides; other wishes than the defaults are contradictions."""
        if self.logits is None:
            if self.initialisation == "saved":
                raise invalid("logits", "a file of saved logits for initialisation saved", None)
            return
        object.__setattr__(self, "logits", Path(self.logits))
        policies, vocab_size = starts.saved_shape(self.logits)
        for name, value in (("initialisation", "saved"), ("policies", policies), ("vocab_size", vocab_size)):
            if getattr(self, name) not in (value, getattr(type(self), name)):
                raise invalid(name, f"{value!r} as {self.logits} has, or none", repr(getattr(self, name)))
            object.__setattr__(self, name, value)
        object.__setattr__(self, "logits_digest", starts.file_digest(self.logits))

    def initial_logits(self, start: int = 0, stop: int | None = None) -> Float[Tensor, "B V"]:
        """Make the policies to start from, or some of them, (policies, vocab_size), float64.

        Args:
            start: The first policy.
            stop: The end of the policies; None for all.

        Raises:
            ValueError: A saved logit is not finite.

        Example:
            >>> SimulationConfig(policies=2, vocab_size=3).initial_logits().shape
            torch.Size([2, 3])
        """
        shape = (self.policies if stop is None else stop) - start, self.vocab_size
        match self.initialisation:
            case "uniform":
                return starts.uniform_logits(*shape)
            case "zipf":
                return starts.zipf_logits(*shape, self.zipf_exponent)
            case "forking":
                return starts.forking_logits(*shape, self.seed, start)
            case "saved":
                assert self.logits is not None
                return starts.saved_logits(self.logits, shape[0], start)
        return starts.gaussian_logits(*shape, self.logit_scale, self.seed, start)


@dataclass(frozen=True)
class VocabSimulationConfig(SimulationConfig):
    """GRPO on a few softmax policies of a language model's vocabulary, which start as certain as a trained model.

    The same simulation as `simulate toy`, with float32 logits, policy by policy. Examples:

      entropy-theory simulate vocab
      entropy-theory simulate vocab --logits logits.safetensors --optimizer adam --step-size 0.01 --out runs/vocab-adam
      torchrun --nproc-per-node 2 -m entropy_theory simulate vocab
    """

    policies: int = 32
    vocab_size: int = 151_936
    steps: int = 20
    initialisation: Initialisation = "forking"
    checkpoint_every: int = 5
    block_elements: int = 1 << 18
    dtype: Dtype = "float32"
    out: Path = Path("runs/simulate-vocab")


def _check_device(device: object) -> None:
    try:
        kind = torch.device(device).type if isinstance(device, str) else None
    except RuntimeError:
        kind = None
    if kind not in ("cpu", "cuda"):
        raise invalid("device", "cpu or cuda, with a number if need be", repr(device))
    if kind == "cuda" and not torch.cuda.is_available():
        raise invalid("device", "a device of this machine", f"{device!r}, but CUDA is not available")
