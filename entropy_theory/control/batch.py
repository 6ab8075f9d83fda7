"""The per-token statistics of one optimizer step, as the rules read them.

`TokenBatch` holds what was measured on B completions of at most T tokens, whatever the vocabulary: nothing of
vocabulary size is stored here. The exact scores S and S_c can be carried; only when they are absent are they rebuilt
from log p, H and N.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int, Int8
from torch import Tensor

from entropy_theory.errors import invalid
from entropy_theory.records import written_whole
from entropy_theory.vocab.statistics import FIELDS, SECOND_ORDER_FIELDS, TokenStatistics

_STATISTICS = "token_statistics(logits, tokens)"
_HOW_TO_GET = {
    "entropy": f"{_STATISTICS}.entropy",
    "old_log_probs": "the log-probabilities of the completion tokens under the policy before the update",
    "rollout_log_probs": "the log-probabilities that the generating engine returned",
    "old_entropy": f"{_STATISTICS}.entropy of the policy before the update",
    "baseline": f"{_STATISTICS}.baseline",
    "discriminant": f"{_STATISTICS}.discriminant",
    "centered_discriminant": f"{_STATISTICS}.centered_discriminant, or .baseline to rebuild it",
    "sum_squared_discriminant": "token_statistics(logits, tokens, second_order=True).sum_squared_discriminant",
    "grpo_curvature": "token_statistics(logits, tokens, second_order=True).grpo_curvature",
    "rewards": "the reward of each completion, shape (B,)",
    "group_ids": "the prompt group of each completion, shape (B,)",
    "influence": "entropy-theory inspect ROLLOUTS --model MODEL --influence --save-batch FILE records it",
}
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_LOG_PROBS = ("log_probs", "old_log_probs", "rollout_log_probs")
_ENTROPIES = ("entropy", "old_entropy")

ROUNDING = 1e-4
"""How far log p may lie above 0, and H below: float32 logits of size 1,000 are rounded by 6e-5, others by ε · 128."""

ENGINE_ROUNDING = 0.25
"""The same for what a generating engine returns, which may come from bf16: logits of 64 are rounded by this."""

_FORMAT = {"format": "entropy_theory.TokenBatch", "version": "1"}


def _without_repetitions(values: Tensor) -> Tensor:
    """The values of an expanded tensor, each once."""
    return values[tuple(slice(0, 1) if step == 0 else slice(None) for step in values.stride())]


def signs(values: Float[Tensor, "*shape"]) -> Int8[Tensor, "*shape"]:
    """Give −1, 0 or 1 for each value, without gradient; faster than two comparisons.

    Example:
        >>> signs(torch.tensor([-2.0, 0.0, 0.5])).tolist()
        [-1, 0, 1]
    """
    return values.detach().sign().to(torch.int8)


@dataclass(frozen=True, eq=False)
class TokenBatch:
    """Per-token statistics of B completions, validated once.

    Notation of arXiv 2602.03392: S = p (H + log p), N = E_p[S], S_c = S − N, A the advantage, all of the sampled token.

    Args:
        log_probs: log p of the sampled tokens under the current policy, (B, T), nats.
        entropy: H of the current policy at each position, (B, T), nats.
        advantages: A, one per completion (B,) or one per token (B, T).
        completion_mask: 1 or True at valid tokens, 0 or False elsewhere, (B, T); kept as bool.
        old_log_probs: log p before the update, for the ratio r = exp(log p − log p_old).
        rollout_log_probs: log p as the generating engine saw it.
        old_entropy: H before the update.
        baseline: N.
        discriminant: S, exact; carried so that it is not rebuilt from rounded parts.
        centered_discriminant: S_c, exact; likewise.
        sum_squared_discriminant: Σ_i S_i² over the vocabulary.
        grpo_curvature: H''(0) along e_k − p, the second order of a GRPO step (section B.7 of the theory notes).
        rewards: One per completion, (B,).
        group_ids: The prompt group of each completion, integers (B,).
        influence: D, of each token on the mean entropy of the batch's n valid contexts, nats per unit of (η/n) g
            (`entropy_theory.influence.token_influence`).

    Shapes: (B, T) unless noted. Any floating dtype; bf16 is widened to float32 before S is rebuilt from it.
    Domain: at valid positions every value is finite, log p ≤ 0 and H ≥ 0 up to rounding. Masked positions may hold
    anything, NaN too, and never influence a result. A batch without any valid token is accepted (a rank may have none);
    a rule refuses it when no rank has one.

    Raises:
        ValueError: shapes, dtypes or devices differ, the mask has other values than 0 and 1, or a value at a valid
            position is not finite or out of range. The message names the argument.

    Example:
        >>> batch = TokenBatch(
        ...     log_probs=torch.tensor([[-0.1, -3.0]]), entropy=torch.tensor([[0.5, 0.5]]),
        ...     advantages=torch.tensor([1.0]), completion_mask=torch.tensor([[1, 1]]),
        ...     baseline=torch.tensor([[0.1, 0.1]]))
        >>> batch.quadrants().tolist()
        [[1, 2]]
    """

    # a run-time type checker leaves the constructor's arguments to __post_init__, which says more about them
    __no_type_check__ = True

    log_probs: Float[Tensor, "B T"]
    entropy: Float[Tensor, "B T"]
    advantages: Float[Tensor, " B"] | Float[Tensor, "B T"]
    completion_mask: Bool[Tensor, "B T"]
    old_log_probs: Float[Tensor, "B T"] | None = None
    rollout_log_probs: Float[Tensor, "B T"] | None = None
    old_entropy: Float[Tensor, "B T"] | None = None
    baseline: Float[Tensor, "B T"] | None = None
    discriminant: Float[Tensor, "B T"] | None = None
    centered_discriminant: Float[Tensor, "B T"] | None = None
    sum_squared_discriminant: Float[Tensor, "B T"] | None = None
    rewards: Float[Tensor, " B"] | None = None
    group_ids: Int[Tensor, " B"] | None = None
    grpo_curvature: Float[Tensor, "B T"] | None = None
    influence: Float[Tensor, "B T"] | None = None

    def __post_init__(self) -> None:
        shape = self._check_shapes()
        self._check_mask()
        if self.group_ids is not None and self.group_ids.dtype not in _INTEGERS:
            raise invalid("group_ids", "an integer tensor", self.group_ids.dtype)
        self._check_values(shape)

    @classmethod
    def from_statistics(
        cls, statistics: TokenStatistics, *, advantages: Tensor, completion_mask: Tensor, **others: Tensor | None
    ) -> TokenBatch:
        """Build a batch from the statistics of the current policy, all that were computed.

        Args:
            statistics: What `token_statistics` and its relatives return, with tensors of shape (B, T).
            advantages: As for the class.
            completion_mask: As for the class.
            **others: Further fields of the class; one that the statistics have too takes its place.

        Example:
            >>> from entropy_theory.vocab import token_statistics
            >>> statistics = token_statistics(torch.zeros(1, 2, 5), torch.zeros(1, 2, dtype=torch.int64))
            >>> TokenBatch.from_statistics(
            ...     statistics, advantages=torch.ones(1), completion_mask=torch.ones(1, 2)).quadrants().tolist()
            [[0, 0]]
        """
        measured = {name: getattr(statistics, name) for name in (*FIELDS, *SECOND_ORDER_FIELDS)}
        return cls(**{**measured, "advantages": advantages, "completion_mask": completion_mask, **others})

    def _check_values(self, shape: torch.Size) -> None:
        """Check that values are finite, and in their range, where a token is valid."""
        values = [(name, value) for name, value in self._present() if name not in ("completion_mask", "group_ids")]
        for name, value in values:
            if not value.is_floating_point():
                raise invalid(name, "a floating-point tensor", value.dtype)
        valid = self.completion_mask
        # NaN and infinities survive a sum: where every sum is finite, one look spares the search for a place.
        distinct = {name: _without_repetitions(value.detach()) for name, value in values}
        if not bool(torch.isfinite(torch.stack([value.sum().double() for value in distinct.values()])).all()):
            rows = valid.any(dim=1)
            for name, value in values:
                inside = valid if value.shape == shape else rows
                self._refuse(name, value, inside & ~torch.isfinite(value.detach()), "finite values")
        for name, value in values:
            slack = max(ROUNDING, 128 * torch.finfo(value.dtype).eps, ENGINE_ROUNDING * (name == "rollout_log_probs"))
            # one look at the extreme, which a NaN at a masked position fails, spares the search
            if name in _LOG_PROBS and value.numel() and not bool(distinct[name].amax() <= slack):
                self._refuse(name, value, valid & (value.detach() > slack), "log-probabilities <= 0")
            elif name in _ENTROPIES and value.numel() and not bool(distinct[name].amin() >= -slack):
                self._refuse(name, value, valid & (value.detach() < -slack), "entropies >= 0")

    @staticmethod
    def _refuse(name: str, value: Tensor, wrong: Bool[Tensor, "*shape"], expected: str) -> None:
        """Raise an error that names the first wrong value, if there is one."""
        if bool(wrong.any()):
            place = tuple(wrong.nonzero()[0].tolist())
            received = f"{value.detach()[place].item()} at position {place}"
            raise invalid(name, f"{expected} at valid positions", received)

    def _present(self) -> Iterator[tuple[str, Tensor]]:
        for f in fields(self):
            value = getattr(self, f.name)
            if value is not None:
                yield f.name, value

    def _check_shapes(self) -> torch.Size:
        for name, value in self._present():
            if not isinstance(value, Tensor):
                raise invalid(name, "a torch tensor", type(value).__name__)
        if self.log_probs.dim() != 2:
            raise invalid("log_probs", "shape (B, T)", tuple(self.log_probs.shape))
        shape, device = self.log_probs.shape, self.log_probs.device
        allowed = {"rewards": [shape[:1]], "group_ids": [shape[:1]], "advantages": [shape[:1], shape]}
        for name, value in self._present():
            expected = allowed.get(name, [shape])
            if value.shape not in expected:
                text = " or ".join(str(tuple(e)) for e in expected)
                raise invalid(name, f"shape {text} as log_probs has", tuple(value.shape))
            if value.device != device:
                raise invalid(name, f"device {device} as log_probs has", value.device)
        return shape

    def _check_mask(self) -> None:
        mask = self.completion_mask
        if mask.is_complex():
            raise invalid("completion_mask", "only the values 0 and 1", mask.dtype)
        if mask.dtype != torch.bool:
            wrong = (mask != 0) & (mask != 1)
            if bool(wrong.any()):
                raise invalid("completion_mask", "only the values 0 and 1", mask[wrong][0].item())
        object.__setattr__(self, "completion_mask", mask.to(torch.bool))

    @property
    def token_advantages(self) -> Float[Tensor, "B T"]:
        """The advantages as one number per token, (B, T); a view when they came as (B,)."""
        if self.advantages.dim() == 2:
            return self.advantages
        return self.advantages.unsqueeze(1).expand(self.log_probs.shape)

    def scores(self, log_probs: Float[Tensor, "B T"] | None = None) -> Float[Tensor, "B T"]:
        """The discriminant S of each sampled token, without gradient.

        S = p (H + log p), p = exp(log_probs).

        The carried `discriminant` when there is one, otherwise rebuilt in float32 or wider. With `log_probs`
        given, S is always rebuilt from those and from `entropy`: that is what Clip_B's official code does with the
        log-probabilities of the generating engine.

        Args:
            log_probs: Log-probabilities to use instead of the batch's own, (B, T).

        Returns:
            S, nats, (B, T); unspecified at masked positions.

        Example:
            >>> x = torch.tensor([[-0.5]])
            >>> TokenBatch(x, x + 1.5, x[:, 0], x * 0 + 1).scores().item() == float(torch.exp(x) * 0.5)
            True
        """
        if log_probs is None:
            if self.discriminant is not None:
                return self.discriminant.detach()
            log_probs = self.log_probs
        wide = torch.promote_types(torch.promote_types(log_probs.dtype, self.entropy.dtype), torch.float32)
        log_p, entropy = log_probs.detach().to(wide), self.entropy.detach().to(wide)
        return torch.exp(log_p) * (entropy + log_p)

    def centered_scores(self) -> Float[Tensor, "B T"]:
        """The centred discriminant S_c = S − N of each sampled token, without gradient.

        The carried `centered_discriminant` when there is one, otherwise `scores() − baseline`. S alone never
        stands in for S_c: their signs differ on a sizeable minority of tokens.

        Returns:
            S_c, nats, (B, T); unspecified at masked positions.

        Raises:
            ValueError: neither `centered_discriminant` nor `baseline` is carried.

        Example:
            >>> x = torch.zeros(1, 1)
            >>> TokenBatch(x, x, x, x + 1, discriminant=x + 0.5, baseline=x + 0.25).centered_scores().item()
            0.25
        """
        if self.centered_discriminant is not None:
            return self.centered_discriminant.detach()
        if self.baseline is None:
            raise self._missing("centered_discriminant", by="centered_scores")
        scores = self.scores()
        return scores - self.baseline.detach().to(torch.promote_types(scores.dtype, self.baseline.dtype))

    def available(self, name: str) -> bool:
        """Say whether a statistic is carried or can be rebuilt without loss of meaning.

        Example:
            >>> x = torch.zeros(1, 1)
            >>> batch = TokenBatch(x, x, x, x + 1, baseline=x)
            >>> batch.available("centered_discriminant"), batch.available("old_log_probs")
            (True, False)
        """
        if name == "discriminant":
            return True
        if name == "centered_discriminant" and self.baseline is not None:
            return True
        return getattr(self, name) is not None

    def require(self, *names: str, by: str) -> None:
        """Refuse when a statistic is missing, saying who needs it and how to get it.

        Args:
            *names: Fields of this class.
            by: Who needs them, for the message.

        Raises:
            ValueError: one of them is not available.

        Example:
            >>> x = torch.zeros(1, 1)
            >>> TokenBatch(x, x, x, x + 1).require("rewards", by="w-reinforce")
            Traceback (most recent call last):
            ...
            entropy_theory.errors.InputError: rewards: expected a tensor, which w-reinforce needs (...), received None
        """
        for name in names:
            if not self.available(name):
                raise self._missing(name, by)

    @staticmethod
    def _missing(name: str, by: str) -> ValueError:
        return invalid(name, f"a tensor, which {by} needs ({_HOW_TO_GET[name]})", None)

    def quadrants(self) -> Int8[Tensor, "B T"]:
        """The quadrant of (A, S_c) of each token.

        Notation of arXiv 2602.03392; what a step on the token does to entropy, to first order:

        | | S_c > 0 | S_c < 0 |
        | --- | --- | --- |
        | A > 0 | 1: entropy falls | 2: entropy rises |
        | A < 0 | 3: entropy rises | 4: entropy falls |

        Returns:
            int8 (B, T): 1 to 4, and 0 where the token is masked, A = 0 or S_c = 0.

        Raises:
            ValueError: S_c is not available; S is no substitute.

        Example:
            >>> x = torch.zeros(1, 4)
            >>> A, S_c = torch.tensor([[1.0, 1.0, -1.0, -1.0]]), torch.tensor([[0.1, -0.1, 0.1, -0.1]])
            >>> TokenBatch(x, x, A, x + 1, centered_discriminant=S_c).quadrants().tolist()
            [[1, 2, 3, 4]]
        """
        centered, advantages = signs(self.centered_scores()), signs(self.token_advantages)
        number = (5 - centered - 2 * advantages) >> 1  # 1 to 4 where neither sign is 0
        return number * (centered * advantages).abs_() * self.completion_mask.view(torch.int8)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the batch to a safetensors file; the file appears whole or not at all.

        Dtypes and values are kept, also at masked positions; gradients are not.

        Example:
            >>> import tempfile
            >>> x = torch.zeros(1, 2)
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     TokenBatch(x, x, x, x + 1).save(Path(folder) / "batch.safetensors")
            ...     TokenBatch.load(Path(folder) / "batch.safetensors").log_probs.shape
            torch.Size([1, 2])
        """
        from safetensors.torch import save_file

        # Fields may share memory (the same tensor given twice), which the format refuses: copy each.
        tensors = {name: value.detach().cpu().contiguous().clone() for name, value in self._present()}
        with written_whole(Path(path)) as temporary:
            save_file(tensors, temporary, metadata=_FORMAT)

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: str | torch.device = "cpu") -> TokenBatch:
        """Read a batch that `save` wrote, and validate it.

        Args:
            path: The file.
            device: Where the tensors go.

        Raises:
            ValueError: no such file, not a safetensors file, tensors missing or unknown, or values that the class
                refuses.

        Example:
            >>> TokenBatch.load("no-such-file.safetensors")
            Traceback (most recent call last):
            ...
            entropy_theory.errors.InputError: path: expected a TokenBatch file in safetensors format, received ...
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            tensors = load_file(path, device=str(device))
        except (SafetensorError, OSError) as error:
            raise invalid("path", "a TokenBatch file in safetensors format", f"{path} ({error})") from error
        known = [f.name for f in fields(cls)]
        unknown, missing = sorted(set(tensors) - set(known)), [n for n in known[:4] if n not in tensors]
        if unknown or missing:
            received = ", ".join([*(f"no {name}" for name in missing), *(f"unknown {name}" for name in unknown)])
            raise invalid("path", f"the tensors {', '.join(known[:4])} and no other than TokenBatch has", received)
        return cls(**tensors)
