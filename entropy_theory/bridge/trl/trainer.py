"""Entropy control for TRL's GRPO trainer.

TRL calls, in this order, and entropy control acts in three of these places, chosen by the rule:

1. `_generate_and_score_completions`, once per generation batch, before any update: the sampled tokens are scored with
   the current policy, the rule is applied to the batch of all ranks and micro-batches at once, and per-token advantages
   are handed back to TRL. They survive TRL's shuffle and split, so the statistics are global and fixed before the
   updates, and TRL's own loss, clipping, KL and logging stay as they are.
2. `_compute_loss`, once per micro-batch. In one pass, taken where that is exact, the batch is scored in the middle of
   it, by the training forward itself.
3. In the same place ratio-based rules and entropy terms are evaluated at every update; see `live_loss`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import ProcessorMixin, TrainerCallback
from trl import GRPOTrainer, RLOOTrainer

from entropy_theory.bridge.metrics import PREFIX
from entropy_theory.bridge.trl import checkpoints
from entropy_theory.bridge.trl.carried import CARRIED, GROUPS, MARKS, OLD, REWARDS, ROWS, marks, old_log_probs
from entropy_theory.bridge.trl.compatibility import (
    against_one_pass,
    check_supported,
    check_trl_version,
    warn_untested,
)
from entropy_theory.bridge.trl.config import OPTIONS, default_config
from entropy_theory.bridge.trl.derived import (
    GRPOCore,
    RLOOCore,
    acts,
    check_derived,
    find_config,
    own_methods,
    owner,
    with_core,
)
from entropy_theory.bridge.trl.generation import GenerationControl, RuleRun
from entropy_theory.bridge.trl.ledger import LedgerCallback, LedgerKeeper
from entropy_theory.bridge.trl.live_loss import LiveLoss
from entropy_theory.bridge.trl.scoring import Scorer
from entropy_theory.control import Rule
from entropy_theory.control import rule as build_rule
from entropy_theory.errors import invalid

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

    from entropy_theory.vocab import TokenStatistics

    _Trainer = Any  # the mixin reads what the GRPOTrainer behind it has
else:
    _Trainer = object


class EntropyControlMixin(checkpoints.SafeCheckpoints, _Trainer):
    """Put before a ``GRPOTrainer`` class to control its updates with an entropy-control rule.

    Per generation batch it logs, under ``entropy_control/`` and over all ranks: ``entropy``, the mean H; ``slope`` =
    −mean(g · S_c), the predicted direction and relative size of the entropy change at ratio 1;
    ``mean_discriminant`` and ``mean_centered_discriminant``; what the rule reports, among it ``dropped_share`` and the
    shares of the quadrants, ``quadrant_share_q1`` to ``quadrant_share_q4``; every ``realised_change_every``
    generations ``realised_change``, the mean over the same tokens of H after the update minus H before it; and for
    each rule of ``observe`` the share it would have dropped, ``observed/RULE/dropped_share``. What a ratio-based rule
    reports is of the optimizer step. ``slope`` is not a ΔH: a model with shared parameters has no step size in logit
    space.

    Args:
        rule: A rule or its specification; the default is ``args.rule`` or ``"none"``.
        *args: As for the trainer.
        **kwargs: As for the trainer.

    Raises:
        ValueError: TRL's version, the loss, an option, or rule and options together are not supported.
    """

    def __init__(self, *args: Any, rule: str | Rule | None = None, **kwargs: Any) -> None:
        check_trl_version(version("trl"))
        for value in (*args, *kwargs.values()):
            _check_processor(value)
        config = find_config(args, kwargs)
        if config is None and len(args) <= 2 and not self._has_own_init():
            config = kwargs["args"] = default_config(type(self))
        if config is not None:  # what cannot be done is said before any model is loaded
            self._prepare_control(config, rule)
        super().__init__(*args, **kwargs)
        if config is None:  # a trainer that makes its own configuration
            self._prepare_control(self.args, rule)
        self._start_control()

    def _has_own_init(self) -> bool:
        """Whether a class between the mixin and TRL's trainer has a constructor: it may make its own configuration."""
        order = type(self).__mro__
        later = order[order.index(EntropyControlMixin) + 1 :]
        return next(cls for cls in later if "__init__" in vars(cls)) not in (GRPOTrainer, RLOOTrainer)

    def _prepare_control(self, config: Any, rule: str | Rule | None) -> None:
        """Read the rule and the options, and check what they ask for."""
        kind: Any = type(self)
        self.__class__ = with_core(kind)
        self.rule = build_rule(rule if rule is not None else getattr(config, "rule", "none"))
        self.observed = [build_rule(spec) for spec in getattr(config, "observe", [])]
        self._scoring = getattr(config, "scoring", "auto")
        check_supported(self.rule, config, version("trl"), self._scoring)
        check_derived(type(self), self.rule, _OURS)
        for name in ("realised_change_every", "save_batches"):
            if int(getattr(config, name, 0)) < 0:
                raise invalid(name, "an integer >= 0", getattr(config, name))
        self.batches_folder = Path(config.output_dir or "trainer_output") / "batches"

    def _start_control(self) -> None:
        args = self.args
        _check_processor(self.processing_class)
        warn_untested(args, self.accelerator)
        realised_every = int(getattr(args, "realised_change_every", 0))
        self._run = RuleRun(self, self.rule, self.observed, int(getattr(args, "rule_seed", 0)))
        self._scorer = Scorer(self)
        for rule in (self.rule, *self.observed):
            rule.check_vocabulary(self._scorer.layer.vocab_size)
        every = int(getattr(args, "influence_every", 0))
        kept = bool(getattr(args, "ledger", False))
        self._ledger = LedgerKeeper(self, self._run, self._scorer, every) if kept else None
        self._generation = GenerationControl(
            self,
            self._run,
            self._scorer,
            save_every=int(getattr(args, "save_batches", 0)),
            realised_every=realised_every,
            account=None if self._ledger is None else self._ledger.enter,
        )
        self._live = LiveLoss(self, self._run, self._scorer, self._generation)
        self._live.one_pass = self._takes_one_pass()
        self._has_own_forward = any(name.startswith("_get_per_token") for _, name in own_methods(type(self), _OURS))
        self._begin_generation()
        self._generating = False  # while TRL generates and scores
        if realised_every:
            self.add_callback(_RealisedChange(self._generation))
        if self._ledger is not None:
            self.add_callback(LedgerCallback(self._ledger, self, every))

    def _takes_one_pass(self) -> bool:
        """Say whether the generation batch can be scored in the training forward without changing a result."""
        if self._scoring == "batch" or against_one_pass(self.rule, self.args) is not None:
            return False
        if self._scoring == "one-pass":
            self._check_noise(self._scorer.named_noise())
            return True
        # Whoever works on the batch before the loss is to find it controlled; and a forward that TRL makes anyway
        # serves as well.
        return not own_methods(type(self), _OURS) and not self.stores_old_log_probs()

    def _check_noise(self, noise: str | None) -> None:
        if noise:
            expected = "'batch', or a model without dropout (disable_dropout) and other noise in training"
            raise invalid("scoring", expected, f"'one-pass' with {noise}")

    # -- the generation batch -----------------------------------------------------------------------------------------

    def _begin_generation(self) -> None:
        self._captured: TokenStatistics | None = None  # in TRL's own forward over the generation batch
        self._sampled: Tensor | None = None  # what that forward returned: TRL's old log-probabilities
        self._rewards: Tensor | None = None  # of all ranks, one column for each reward function
        self._groups_so_far = 0

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        if self._ledger is not None and self.model.training:
            self._ledger.measure()  # where the last update was not the end of an optimizer step on that batch alone
        self._begin_generation()
        self._generating = True
        try:
            output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        finally:
            self._generating = False
        if not self.model.training:
            return output
        kept = MARKS in output and torch.equal(output[MARKS], marks(output))
        output = self._with_facts(output, kept)
        if self._live.one_pass and self._one_pass_is_exact(output):
            rows = len(output["completion_ids"])
            self._generation.travels = acts(self.rule)
            return output | {ROWS: torch.arange(rows, device=output["completion_ids"].device)}
        # A trainer of somebody's own may have dropped or replaced rows since: then nothing captured is theirs.
        old = old_log_probs(output)
        same = kept and self._sampled is not None and old is not None and torch.equal(old, self._sampled)
        if self.accelerator.num_processes > 1:  # ranks must meet in the same forwards
            same = not int(self._run.reducer().sum(torch.tensor(int(not same))))
        self._generation.just_sampled = same
        return output | self._generation.decide(output, self._captured if same else None)

    def _with_facts(self, output: dict[str, Any], kept: bool) -> dict[str, Any]:
        """Keep what the core said of the rows if they are those; name what is missing where a rule reads it."""
        if not kept:
            output = {key: value for key, value in output.items() if not key.startswith(CARRIED)}
        live = [
            rule for rule in (self._run.live_part, *self._run.observed) if rule is not None and rule.phase == "live"
        ]
        read = {
            REWARDS: self._run.needs("rewards"),
            GROUPS: self._run.needs("group_ids") or self._ledger is not None,
            OLD: bool(live),
        }
        computed = {REWARDS: self._rewards is not None, GROUPS: self._rewards is not None}
        computed[OLD] = self._sampled is not None and not self.reads_token_advantages
        for key in (key for key in read if read[key] and computed[key] and key not in output):
            named = owner(type(self), _OURS, "generation")
            expected = f"a tensor for the rows of {named}, which drops or replaces rows without the keys that begin "
            raise invalid(key, expected + f"with {CARRIED!r}: carry them with their rows", None)
        return output

    def _one_pass_is_exact(self, output: dict[str, Any]) -> bool:
        """Settle on the first batch whether the training forward can serve; not all can be seen before it runs."""
        noise, obstacle = self._scorer.noise(output), self._scorer.obstacle(output)
        if self._scoring == "one-pass":
            self._check_noise(noise)
            if obstacle:
                raise invalid("scoring", f"'batch': {obstacle}", "'one-pass'")
        self._live.one_pass = not (noise or obstacle)
        return self._live.one_pass

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Tensor:
        self._rewards = super()._calculate_rewards(*args, **kwargs)
        return self._rewards

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        result = super()._generate_single_turn(*args, **kwargs)
        completion_ids = result[0] if isinstance(result, tuple) else result  # RLOO returns nothing else
        empty = sum(len(ids) == 0 for ids in completion_ids)
        if empty:
            expected = "at least one token each, the end token where nothing else was written"
            raise invalid("completion_ids", expected, f"{empty} empty of {len(completion_ids)}")
        return result

    # -- TRL's forwards and loss --------------------------------------------------------------------------------------

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int, *args: Any, **kwargs: Any
    ) -> Any:
        method = super()._get_per_token_logps_and_entropies

        def forward() -> Any:
            return method(model, input_ids, attention_mask, logits_to_keep, *args, **kwargs)

        if self._live.call is not None:
            with self._entropies_with_gradient():
                return self._live.forward(forward)
        # While generating, TRL runs the policy before the reference: the first forward of the policy, where there is
        # one at all, is that for the old log-probabilities.
        first = self._generating and self.model.training and self._sampled is None and model is self.model
        if not first or not self.stores_old_log_probs():
            return forward()
        if self._live.one_pass or self._scoring == "batch" or self._has_own_forward:
            output = forward()  # for itself: what scores may make another in its place
        else:
            output, self._captured = self._scorer.beside(
                forward, input_ids, attention_mask, logits_to_keep, self._generation.second_order
            )
        self._sampled = output[0].clone()  # a class below may write into what it is given
        # TRL before 1.7 returns two values.
        return output[: 3 if "compute_aux_loss" in inspect.signature(method).parameters else 2]

    @contextmanager
    def _entropies_with_gradient(self) -> Iterator[None]:
        """Have TRL keep the gradient of its entropies: before 1.16 it does so for its own entropy bonus only."""
        before = getattr(self, "_entropy_bonus_enabled", None)
        if before is not None and self.rule.entropy_term:
            self._entropy_bonus_enabled = True
        try:
            yield
        finally:
            if before is not None:
                self._entropy_bonus_enabled = before

    def get_high_entropy_mask(self, entropies: Tensor, mask: Tensor, threshold: float) -> Tensor:
        """Return TRL's mask, and keep it for the loss of a ratio-based rule.

        Raises:
            ValueError: TRL's entropies are not numbers, as with logits of −inf: TRL would train on no token.
        """
        wrong = ~torch.isfinite(entropies) & mask.bool()
        if self._run.reducer().sum(wrong.sum()) > 0:
            expected = "1.0 for a model with logits of −inf, of whose entropies TRL makes NaN"
            raise invalid("top_entropy_quantile", expected, self.top_entropy_quantile)
        mask = super().get_high_entropy_mask(entropies, mask, threshold)
        if self._live.call is not None:
            self._live.call.entropy_mask = mask
        return mask

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Train on a micro-batch, and stop if the rule had no part in it."""
        before = self._live.calls
        loss = super().training_step(*args, **kwargs)
        reads = getattr(type(self), "loss_reads_token_advantages", False)
        if self._live.calls == before and acts(self.rule) and not reads:
            named = owner(type(self), _OURS, "loss")
            expected = f"'none' for {named}, whose loss does not reach TRL's through super()._compute_loss"
            raise invalid("rule", expected, repr(str(self.rule)))
        return loss

    # -- what the scorer and the losses read, besides TRL's public names: `host.HostTrainer` --------------------------

    @property
    def rule_state(self) -> Any:
        """What the rule remembers from one step to the next; None when it remembers nothing."""
        return self._run.state

    @property
    def micro_step(self) -> int:
        """Micro-batches trained on since training began."""
        return int(self._step)

    @property
    def micro_batches(self) -> list[dict[str, Any]]:
        """The micro-batches of the current generation batch."""
        return list(self._buffered_inputs)

    def log_metrics(self, values: dict[str, float]) -> None:
        """Log numbers of the optimizer step."""
        for name, value in values.items():
            self._metrics["train"][PREFIX + name].append(float(value))

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def _control_state(self) -> dict[str, Any]:
        state = {"rule": str(self.rule), "rule_seed": self._run.seed, "rule_state": self._run.state}
        ledger = None if self._ledger is None else self._ledger.state()
        return state | {"generations": self._generation.count, "ledger": ledger}

    def _save_rank_state(self, folder: Path) -> None:
        if self._ledger is not None:
            self._ledger.save(folder)

    def _restore_rank_state(self, folder: Path, manifest: Mapping[str, Any]) -> list[str]:
        lost = None if self._ledger is None else self._ledger.restore(folder, manifest)
        return [] if lost is None else [lost]

    def _restore_control(self, manifest: Mapping[str, Any], other: bool) -> list[str]:
        """Take up the rule's memory; return in words what is lost, where another rule may take over."""
        self._generation.count = manifest["generations"]
        seed = manifest.get("rule_seed", self._run.seed)
        changed = [] if seed == self._run.seed else [f"rule_seed was {seed} and is {self._run.seed}"]
        written = manifest["rule"]
        if written == str(self.rule):
            self._run.state = manifest["rule_state"]
        elif not other:
            expected = f"{written!r}, the checkpoint's (resume_with_new_rule=True resumes under another)"
            raise invalid("rule", expected, repr(str(self.rule)))
        elif written is not None:
            memory = "" if manifest["rule_state"] is None else ", and its memory is lost"
            changed.append(f"the rule was {written!r} and is {str(self.rule)!r}{memory}")
        return changed


class EntropyControlledGRPOTrainer(EntropyControlMixin, GRPOCore):
    """TRL's ``GRPOTrainer`` with an entropy-control rule: ``EntropyControlledGRPOTrainer(..., rule="clip-b")``."""


class EntropyControlledRLOOTrainer(EntropyControlMixin, RLOOCore):
    """TRL's ``RLOOTrainer`` with an entropy-control rule: ``EntropyControlledRLOOTrainer(..., rule="clip-b")``."""


_OURS = (EntropyControlMixin, GRPOCore, RLOOCore)


def attach(trainer: Any, rule: str | Rule | None = None, **options: Any) -> Any:
    """Put a trainer that exists under entropy control; for those who have trainers of their own.

    The trainer's class becomes one that derives from `EntropyControlMixin` and from what it was.

    Args:
        trainer: A ``GRPOTrainer`` or ``RLOOTrainer``, or one of a class derived from them.
        rule: A rule or its specification; the default is ``trainer.args.rule`` or ``"none"``.
        **options: As in `EntropyControlledGRPOConfig`: ``rule_seed``, ``observe`` and so on.

    Returns:
        The same trainer.

    Raises:
        ValueError: It is no such trainer, is under control already, or is in the middle of a generation batch, which
            would be controlled in part; an option is unknown; or what `EntropyControlMixin` raises.

    Example:
        >>> attach("a trainer", "clip-b")
        Traceback (most recent call last):
        ...
        entropy_theory.errors.InputError: trainer: expected a GRPOTrainer or RLOOTrainer, received str
    """
    check_trl_version(version("trl"))
    if not isinstance(trainer, GRPOTrainer | RLOOTrainer):
        raise invalid("trainer", "a GRPOTrainer or RLOOTrainer", type(trainer).__name__)
    if isinstance(trainer, EntropyControlMixin):
        raise invalid(
            "trainer", "one that is not yet under entropy control", f"one with the rule {str(trainer.rule)!r}"
        )
    period = trainer.args.steps_per_generation * trainer.num_iterations
    if trainer._step % period:
        received = f"one at micro-step {trainer._step % period} of {period}"
        raise invalid("trainer", "one between two generation batches", received)
    for name, value in options.items():
        if name not in OPTIONS or name == "rule":
            raise invalid(name, f"an option among {', '.join(OPTIONS[1:])}", repr(value))
    before = {name: getattr(trainer.args, name) for name in options if hasattr(trainer.args, name)}
    kind = type(trainer)
    try:
        for name, value in options.items():
            setattr(trainer.args, name, value)
        trainer.__class__ = type(f"EntropyControlled{kind.__name__}", (EntropyControlMixin, kind), {})
        trainer._prepare_control(trainer.args, rule)
        trainer._start_control()
    except Exception:
        trainer.__class__ = kind
        for name in options:
            setattr(trainer.args, name, before[name]) if name in before else delattr(trainer.args, name)
        raise
    return trainer


class _RealisedChange(TrainerCallback):
    """Measures the realised change after the first optimizer step on a batch."""

    def __init__(self, generation: GenerationControl) -> None:
        self._generation = generation

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._generation.measure_realised_change()


def _check_processor(processing_class: Any) -> None:
    if isinstance(processing_class, ProcessorMixin):
        raise invalid("processing_class", "a tokenizer (images are not scored yet)", "a multimodal processor")
