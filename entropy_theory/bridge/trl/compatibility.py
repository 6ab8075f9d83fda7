"""What entropy control can carry in TRL's trainer, and errors that name what it cannot, before any work."""

from __future__ import annotations

import warnings
from typing import Any, Literal, get_args

from packaging.version import Version

from entropy_theory.control import Rule
from entropy_theory.control.denominators import TRL_DIVISORS
from entropy_theory.errors import invalid

SUPPORTED_TRL = ">=1.0,<2,!=1.15.*"

SUPPORTED_LOSSES = frozenset(TRL_DIVISORS)

Scoring = Literal["auto", "batch", "one-pass"]


def check_trl_version(installed: str) -> None:
    """Check that the TRL release is one that the overridden methods were read and run on.

    Raises:
        ValueError: The release is not in ``SUPPORTED_TRL``.

    Example:
        >>> check_trl_version("1.16.0")
        >>> check_trl_version("0.29.0")
        Traceback (most recent call last):
        ...
        entropy_theory.errors.InputError: trl: expected a release in >=1.0,<2,!=1.15.*, received 0.29.0
    """
    release = Version(installed)
    # Compared by hand: SpecifierSet would reject the pre-releases and dev builds of a supported release.
    if not (Version("1.0.dev0") <= release < Version("2.dev0")) or release.release[:2] == (1, 15):
        raise invalid("trl", f"a release in {SUPPORTED_TRL}", installed)


def check_supported(rule: Rule, args: Any, installed: str, scoring: str = "auto") -> None:
    """Check that rule and options can be carried exactly, before any work.

    Args:
        rule: The control rule.
        args: The trainer's configuration.
        installed: TRL's release.
        scoring: "auto", "batch" or "one-pass".

    Raises:
        ValueError: The loss would ignore per-token advantages; an option replaces the code that reads them; a
            ratio-based rule and an option of TRL would both decide the same thing; statistics over an optimizer step
            cannot be formed; one pass is not exact; or the ledger's first order would need what one process has not.
    """
    loss_type = getattr(args, "loss_type", None)  # RLOO has none
    if loss_type is not None and loss_type not in SUPPORTED_LOSSES:
        raise invalid("loss_type", f"one of {', '.join(sorted(SUPPORTED_LOSSES))}", repr(loss_type))
    for option in ("use_liger_kernel", "use_liger_loss"):
        # From 1.13 on TRL has no Liger loss: the option only changes kernels inside the layers.
        if getattr(args, option, False) and Version(installed) < Version("1.13"):
            raise invalid(option, "False: Liger's loss reads one advantage per sequence, not per token", True)
    if rule.entropy_term and Version(installed) < Version("1.8"):
        raise invalid("trl", f"1.8 or newer for {str(rule)!r}: before, entropies carry no gradient", installed)
    if rule.split()[1] is not None:
        if loss_type == "luspo" and Version(installed) < Version("1.10"):
            raise invalid(
                "trl", f"1.10 or newer for luspo beside {str(rule)!r}: before, it divided otherwise", installed
            )
        _check_ratio_based(rule, args)
    _check_scoring(rule, args, scoring)
    _check_ledger(args)


def _check_ratio_based(rule: Rule, args: Any) -> None:
    """A ratio-based rule takes the place of TRL's surrogate: what shapes that surrogate must be left alone."""
    level = getattr(args, "importance_sampling_level", "token")
    if level != "token":
        expected = f"'token' beside {str(rule)!r}, which defines its own ratio (gspo is the rule of whole sequences)"
        raise invalid("importance_sampling_level", expected, repr(level))
    for option, instead in (
        ("delta", "the rule's dual_clip"),
        ("off_policy_mask_threshold", "a mask rule"),
        ("use_adaptive_entropy", "the rule adaptive-entropy"),
        ("entropy_coef", "the rule entropy-bonus"),
    ):
        if getattr(args, option, None):
            raise invalid(option, f"unset beside {str(rule)!r}: use {instead}", getattr(args, option))
    per_step, per_generation = args.gradient_accumulation_steps, args.steps_per_generation
    live = rule.split()[1]
    if live is not None and live.scope == "batch" and per_generation % per_step:
        raise invalid(
            "steps_per_generation",
            f"a multiple of gradient_accumulation_steps = {per_step}: {str(rule)!r} takes statistics over all "
            "micro-batches of an optimizer step, which must come from one generation batch",
            per_generation,
        )


def _check_scoring(rule: Rule, args: Any, scoring: str) -> None:
    if scoring not in get_args(Scoring):
        raise invalid("scoring", "'auto', 'batch' or 'one-pass'", repr(scoring))
    if scoring == "one-pass" and (obstacle := against_one_pass(rule, args)):
        raise invalid("scoring", obstacle[0], f"'one-pass' with {obstacle[1]}")


def _check_ledger(args: Any) -> None:
    every = int(getattr(args, "influence_every", 0))
    if every < 0:
        raise invalid("influence_every", "an integer >= 0", every)
    if not every:
        return
    if not getattr(args, "ledger", False):
        raise invalid("ledger", f"True beside influence_every = {every}, which splits the ledger's entries", False)
    for name, whole in (("world_size", 1), ("n_gpu", 1), ("fsdp", None), ("deepspeed", None), ("fp16", False)):
        value = getattr(args, name, whole)
        if value and value != whole:
            reason = "0: it needs one process with the whole model, and steps that no loss scaler skips"
            raise invalid("influence_every", reason, f"{every} with {name} = {value}")


def against_one_pass(rule: Rule, args: Any) -> tuple[str, str] | None:
    """Say why the training forward cannot serve to score the batch: what is expected, and what is there instead.

    It sees one micro-batch at a time: exact only where that is the rank's whole generation batch, and never again.
    """
    if rule.phase == "live":
        return "'batch' for a ratio-based rule: in one pass the ratio is always 1", repr(str(rule))
    for name in ("gradient_accumulation_steps", "steps_per_generation", "num_iterations"):
        if (value := getattr(args, name)) != 1:
            reason = "'batch': one pass is exact only with one micro-batch per generation and rank, used once"
            return reason, f"{name} = {value}"
    if args.use_vllm:
        return "'batch' where TRL computes old log-probabilities anyway", "vLLM"
    if args.torch_compile:
        return "'batch': what reads the hidden states would be compiled again at every step", "torch_compile"
    return None


def warn_untested(args: Any, accelerator: Any) -> None:
    """Warn once about accepted options that no test has run."""
    plugin = getattr(accelerator.state, "deepspeed_plugin", None)
    zero3 = plugin is not None and getattr(plugin, "zero_stage", 0) == 3
    for name, used in (("use_vllm", args.use_vllm), ("DeepSpeed ZeRO-3", zero3)):
        if used:
            warnings.warn(f"{name}: accepted, and untested with entropy control", stacklevel=3)
