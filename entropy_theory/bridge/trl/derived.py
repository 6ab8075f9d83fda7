"""Trainers derived from TRL's: where our methods are put among theirs, and what a class of somebody's own replaces.

A controlled trainer's classes, from the first that Python asks to the last:

    the user's classes above · EntropyControlMixin · the user's classes below · GRPOCore or RLOOCore · TRL's trainer

The mixin acts on what the user's classes below made of a batch. The core takes the place of TRL's own loss, so that a
class which adds to that loss keeps what it adds.
"""

from __future__ import annotations

import inspect
from functools import cache, partial
from importlib.metadata import version
from types import CodeType
from typing import TYPE_CHECKING, Any, Literal

import torch
from packaging.version import Version
from torch import Tensor
from transformers import TrainingArguments
from trl import GRPOTrainer, RLOOTrainer

from entropy_theory.bridge.trl.carried import GROUPS, JUDGED, MARKS, OLD, REWARDS, marks
from entropy_theory.control import Rule
from entropy_theory.control.denominators import TRL_DIVISORS, Divisor, reduce_as_trl
from entropy_theory.errors import invalid

if TYPE_CHECKING:
    _Trainer: Any = Any  # the core reads what the trainer behind it has
else:
    _Trainer = object

_LOSS = ("_compute_loss", "compute_loss")
_GENERATION = "_generate_and_score_completions"
_MICRO_BATCH = "_prepare_inputs"


class Core(_Trainer):
    """What entropy control does directly above TRL's trainer: complete its generation batch and replace its loss.

    Attributes:
        reads_token_advantages: Whether TRL's loss reads advantages of shape (B, T).
    """

    reads_token_advantages = True

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        if not self.model.training:
            return output
        return output | self._row_facts(len(output["completion_ids"])) | {MARKS: marks(output)}

    def _row_facts(self, rows: int) -> dict[str, Tensor]:
        """Rewards, groups and old log-probabilities of this rank's rows, for whatever becomes of the rows."""
        facts = {} if self._sampled is None or self.reads_token_advantages else {OLD: self._sampled}
        if self._rewards is None:
            return facts
        first, device = self.accelerator.process_index * rows, self._rewards.device
        here = slice(first, first + rows)
        weights = self.reward_weights.to(device).unsqueeze(0)
        groups = torch.arange(first, first + rows, device=device) // self.num_generations + self._groups_so_far
        self._groups_so_far += len(self._rewards) // self.num_generations
        return facts | {
            REWARDS: (self._rewards * weights).nansum(dim=1)[here].float(),
            GROUPS: groups,
            # A completion that no reward function would judge is left out of the batch; TRL gives it no advantage.
            JUDGED: ~self._rewards.isnan().all(dim=1, keepdim=True)[here],
        }

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        trl_loss = partial(super()._compute_loss, model, inputs)
        return self._live.loss(trl_loss, inputs) if self.model.training else trl_loss()


class GRPOCore(Core, GRPOTrainer):
    """The core over TRL's ``GRPOTrainer``."""

    # From 1.9.1 on TRL rescales the number of tokens from the generation batch to the optimizer step.
    rescales_items = Version(version("trl")) >= Version("1.9.1")

    @property
    def accumulation(self) -> int:
        """The micro-batches of an optimizer step that TRL's loss itself divides by."""
        return int(self.current_gradient_accumulation_steps)

    @property
    def loss_divisor(self) -> Divisor:
        """What the loss type divides by: all tokens, those of each sequence, or a constant."""
        return TRL_DIVISORS[self.loss_type]

    def stores_old_log_probs(self) -> bool:
        """Say whether TRL scores the batch with the policy that sampled it; it does so before any other forward."""
        period = self.args.steps_per_generation * self.num_iterations
        corrected = self.use_vllm and getattr(self, "vllm_importance_sampling_correction", False)
        return bool(self.args.gradient_accumulation_steps % period or corrected)

    def reduce_loss(self, per_token: Tensor, inputs: dict[str, Any]) -> Tensor:
        """Reduce a loss per token, (B, T), as TRL does for the loss type."""
        mask = inputs["completion_mask"]
        mask = mask * inputs["tool_mask"] if "tool_mask" in inputs else mask
        items = inputs["num_items_in_batch"].clamp(min=1.0) / self.accelerator.num_processes
        if self.rescales_items:
            items = items * self.accumulation / self.args.steps_per_generation
        return reduce_as_trl(
            per_token, mask, self.loss_type, steps=self.accumulation, items=items, longest=self.max_completion_length
        )


class RLOOCore(Core, RLOOTrainer):
    """The core over TRL's ``RLOOTrainer``: a mean over sequences of the sum over their tokens."""

    reads_token_advantages = False
    accumulation = 1  # the Trainer divides
    loss_divisor: Divisor = "constant"

    def stores_old_log_probs(self) -> bool:
        """TRL always scores the batch with the policy that sampled it, before any other forward."""
        return True

    def reduce_loss(self, per_token: Tensor, inputs: dict[str, Any]) -> Tensor:
        """Reduce a loss per token, (B, T), as TRL does the loss of sequences."""
        return reduce_as_trl(per_token, inputs["completion_mask"], "luspo", steps=1)

    def loss_of_coefficients(self, coefficients: Tensor, log_probs: Tensor, inputs: dict[str, Any]) -> Tensor:
        """TRL's loss with a coefficient for each token in place of an advantage for each sequence.

            loss = −mean_b Σ_t min(w_t g_t, clip(w_t) g_t),   w_t = sg(Π_s r_s) exp(log p_t − sg log p_t)

        The ratio and its clip are those of the sequence, the gradient is each token's own; where all g_t of a sequence
        are its advantage, the gradient is that of TRL's loss.
        """
        log_ratio = (log_probs.detach() * inputs["completion_mask"]).sum(1) - inputs["old_logps"]
        weight = torch.exp(log_ratio).unsqueeze(1) * torch.exp(log_probs - log_probs.detach())
        clipped = torch.clamp(weight, 1 - self.epsilon_low, 1 + self.epsilon_high)
        return self.reduce_loss(-torch.min(weight * coefficients, clipped * coefficients), inputs)


@cache
def with_core(cls: type) -> type:
    """Put a core between a controlled trainer's class and TRL's, where it has none yet."""
    if issubclass(cls, Core):
        return cls
    if not issubclass(cls, GRPOTrainer | RLOOTrainer):
        raise invalid("trainer", "a class derived from GRPOTrainer or RLOOTrainer", cls.__name__)
    core = RLOOCore if issubclass(cls, RLOOTrainer) else GRPOCore
    names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    return type(cls.__name__, (cls, core), names)


def own_methods(trainer: type, ours: tuple[type, ...]) -> list[tuple[type, str]]:
    """List the methods that entropy control reaches through and that a class between TRL's trainer and ours has.

    Args:
        trainer: The trainer's class.
        ours: The classes of this package, which do not count, nor does what they derive from.

    Example:
        >>> class Mine(GRPOTrainer):
        ...     def _compute_loss(self, model, inputs): ...
        >>> own_methods(Mine, ()), own_methods(GRPOTrainer, ())
        ([(<class '...Mine'>, '_compute_loss')], [])
    """
    names = (_GENERATION, _MICRO_BATCH, "_get_per_token_logps_and_entropies", *_LOSS)
    return [
        (cls, name)
        for cls in trainer.__mro__
        if cls not in (GRPOTrainer, RLOOTrainer)
        and not issubclass(GRPOTrainer, cls)
        and not any(issubclass(own, cls) for own in ours)
        for name in names
        if name in vars(cls)
    ]


def check_derived(trainer: type, rule: Rule, ours: tuple[type, ...]) -> None:
    """Check that a rule acts in a trainer of somebody's own, before any work.

    Read from the code of its methods: a loss that does not call TRL's would train without the rule; one that handles
    the advantages would meet advantages of another shape; a generation that does not call TRL's loses the rewards of
    its rows. What the code does not show, training does: it stops before the first update.

    Args:
        trainer: The trainer's class.
        rule: The rule.
        ours: The classes of this package, the mixin first.

    Raises:
        ValueError: The rule would not act as it should; the message names the class and the way out.
    """
    if not acts(rule):
        return
    live, declared = rule.split()[1] is not None, getattr(trainer, "loss_reads_token_advantages", False)
    writes = not live and any(not member.entropy_term and member.name != "none" for member in members(rule))
    after_control = trainer.__mro__[: trainer.__mro__.index(ours[0])]
    way_out = ", or set loss_reads_token_advantages = True on the class if it takes advantages (B, T)" * writes
    for cls, name in own_methods(trainer, ours):
        named, method = f"{cls.__name__}, whose {name}", vars(cls)[name]
        does = declared and not live and not rule.entropy_term
        if name in _LOSS and not does and not _mentions(method, _LOSS):
            expected = f"'none' for {named} does not call TRL's: call super().{name} in it{way_out}"
            raise invalid("rule", expected, repr(str(rule)))
        meets = writes and (name in (*_LOSS, _MICRO_BATCH) or (name == _GENERATION and cls in after_control))
        if meets and not declared and _mentions(method, ("advantages",)):
            expected = (
                f"'none' for {named} handles the advantages itself: do that in {_GENERATION} of a class that the "
            )
            expected += f"mixin is put before{way_out}"
            raise invalid("rule", expected, repr(str(rule)))
        needed = [field for field in ("rewards", "group_ids") if field in rule.needs]
        if name == _GENERATION and needed and not _mentions(method, (name,)):
            expected = f"one that does not read {' and '.join(needed)} for {named} does not call TRL's: call "
            raise invalid("rule", expected + f"super().{name} in it", repr(str(rule)))


def owner(trainer: type, ours: tuple[type, ...], what: Literal["loss", "generation"]) -> str:
    """Name the class whose own loss or generation a trainer has."""
    names = _LOSS if what == "loss" else (_GENERATION,)
    return next((cls.__name__ for cls, name in own_methods(trainer, ours) if name in names), trainer.__name__)


def members(rule: Rule) -> tuple[Rule, ...]:
    """List the rules of a pipe, or the rule itself."""
    return getattr(rule, "rules", (rule,))


def acts(rule: Rule) -> bool:
    """Whether a rule can change an update at all."""
    return any(member.name != "none" for member in members(rule))


def _mentions(method: Any, names: tuple[str, ...]) -> bool:
    """Whether a method's code has any of the names, as an attribute or a text; True for code that is not Python's."""
    code = getattr(inspect.unwrap(method), "__code__", None)
    codes: list[CodeType] = [] if code is None else [code]
    for inner in codes:
        codes += [constant for constant in inner.co_consts if isinstance(constant, CodeType)]
    return code is None or any(name in (*inner.co_names, *inner.co_consts) for inner in codes for name in names)


def find_config(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Find the configuration among a trainer's arguments, wherever its signature puts it; None when it is not there."""
    return next((value for value in (*args, *kwargs.values()) if isinstance(value, TrainingArguments)), None)
