"""Token statistics of sampled completions under the model that TRL trains.

With a large vocabulary they come from the hidden states and the output matrix, tile by tile, so that no logits are
kept; where the output layer is more than a matrix, a bias and a soft cap, from the logits, a few rows at a time. Where
TRL runs the policy over the batch for its old log-probabilities, that forward is the only one.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from entropy_theory.vocab import TokenStatistics, token_statistics, token_statistics_from_hidden

# Logits that a forward may hold at once, in bytes of float32, where they are needed at all.
LOGITS_BUDGET = 1 << 28

# From this vocabulary on the logits are avoided, and TRL's own product with the output matrix is not made twice. Below
# it they cost less than the hidden states.
LARGE_VOCABULARY = 4096

_FIELDS = ("log_probs", "entropy", "discriminant", "baseline", "centered_discriminant")
_SECOND_ORDER = ("sum_squared_discriminant", "grpo_curvature")


class Scorer:
    """Scores the completions of a trainer's batches.

    Args:
        trainer: The GRPO trainer; its model, accelerator and temperature are read at every call.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._wrapped: Any = None
        self._base: Any = None
        self._obstacle: str | None = None  # why the output layer cannot be read as a matrix; "" when it can

    # -- what the model is --------------------------------------------------------------------------------------------

    @property
    def base(self) -> Any:
        """The language model inside wrappers and adapters."""
        wrapped = self._trainer.model
        if wrapped is not self._wrapped:  # unwrapping walks all modules; it is wrapped once, when training begins
            model = self._trainer.accelerator.unwrap_model(wrapped)
            self._wrapped, self._base = wrapped, model.get_base_model() if hasattr(model, "get_base_model") else model
        return self._base

    @property
    def vocab_size(self) -> int:
        """V."""
        return int(self.base.config.get_text_config().vocab_size)

    def dropout(self) -> str | None:
        """Name a dropout that is on in training: what is scored then is not the policy that sampled."""
        for name, module in self.base.named_modules():
            if isinstance(module, nn.Dropout) and module.p > 0:
                return name
        config = self.base.config.get_text_config()
        rate = getattr(config, "attention_dropout", 0.0)  # applied as a function, without a module
        return "attention_dropout" if isinstance(rate, float) and rate > 0 else None

    def obstacle(self, ids: Tensor, attention_mask: Tensor) -> str:
        """Say why the output layer is not z = κ tanh((h Wᵀ + b)/κ); "" when it is. Found out once, on one position."""
        if self._obstacle is None:
            found = self._look(ids[:1], attention_mask[:1])
            if self._trainer.accelerator.num_processes > 1:  # ranks must meet in the same forwards
                bad = torch.tensor([int(bool(found))], device=ids.device)
                found = found or ("another rank's is not" if int(self._trainer.accelerator.gather(bad).max()) else "")
            self._obstacle = found
            if found and self.vocab_size >= LARGE_VOCABULARY:
                warnings.warn(f"entropy control scores from logits, a few rows at a time: {found}", stacklevel=2)
        return self._obstacle

    @torch.no_grad()
    def _look(self, ids: Tensor, attention_mask: Tensor) -> str:
        base = self.base
        head = base.get_output_embeddings()
        if "logits_to_keep" not in inspect.signature(base.forward).parameters:
            return f"{type(base).__name__} has no logits_to_keep"
        if not isinstance(head, nn.Linear) or not hasattr(base, "base_model") or base.base_model is base:
            return f"the output layer of {type(base).__name__} is {type(head).__name__}, not a linear layer"
        weight = _whole(head.weight)
        if weight.ndim != 2 or weight.shape[1] != head.in_features or weight.shape[0] != head.out_features:
            return "the output matrix is not whole on this rank"
        with self._evaluating(), self.watch() as seen, self._trainer.accelerator.autocast():
            logits = self._trainer.model(
                input_ids=ids, attention_mask=attention_mask, use_cache=False, logits_to_keep=1
            ).logits[:, -1]
            if not seen:
                return f"{type(base.base_model).__name__} did not run as a module"
            hidden, matrix, bias = self._operands(seen[-1][:, -1])
            rebuilt = nn.functional.linear(hidden, matrix, bias).float()
        cap = self._softcap()
        rebuilt = rebuilt if cap is None else cap * torch.tanh(rebuilt / cap)
        # One rounding of each logit in the dtype of the product; a scale or a further layer is off by far more.
        slack = 16 * torch.finfo(hidden.dtype).eps * float(logits.abs().max())
        close = rebuilt.shape == logits.shape and float((rebuilt - logits.float()).abs().max()) <= slack
        return "" if close else f"the logits of {type(base).__name__} are not a product with its output matrix"

    def _softcap(self) -> float | None:
        cap = getattr(self.base.config.get_text_config(), "final_logit_softcapping", None)
        return None if cap is None else float(cap)

    def _operands(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """The hidden states, the output matrix and its bias in the dtype in which the model multiplies them."""
        head = self.base.get_output_embeddings()
        weight, bias = _whole(head.weight), None if head.bias is None else _whole(head.bias)
        kind = hidden.device.type
        dtype = weight.dtype
        if getattr(self._trainer.args, "cast_lm_head_to_fp32", False):
            dtype = torch.float32
        elif torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
        return hidden.to(dtype), weight.detach().to(dtype), None if bias is None else bias.detach().to(dtype)

    # -- forwards -----------------------------------------------------------------------------------------------------

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        model = self._trainer.model
        was_training = model.training
        model.eval()  # dropout would score another policy than the one that sampled, and consume random numbers
        try:
            yield
        finally:
            model.train(was_training)

    @contextmanager
    def watch(self) -> Iterator[list[Tensor]]:
        """Collect the last hidden states of every forward of the model inside the block."""
        seen: list[Tensor] = []

        def keep(module: Any, arguments: Any, output: Any) -> None:
            found = output.last_hidden_state if hasattr(output, "last_hidden_state") else output[0]
            seen.append(found.detach())

        hook = self.base.base_model.register_forward_hook(keep)
        try:
            yield seen
        finally:
            hook.remove()

    @torch.no_grad()
    def from_hidden(self, hidden: Tensor, tokens: Tensor, second_order: bool = False) -> TokenStatistics:
        """Score tokens from the hidden states before them, (B, T, d)."""
        with self._trainer.accelerator.autocast():  # which decides the dtype of the product
            states, matrix, bias = self._operands(hidden)
        return token_statistics_from_hidden(
            states,
            matrix,
            tokens,
            bias=bias,
            softcap=self._softcap(),
            temperature=float(self._trainer.temperature),
            second_order=second_order,
        )

    @torch.no_grad()
    def score(self, batch: Mapping[str, Tensor], second_order: bool = False) -> TokenStatistics:
        """Compute the token statistics of the completions under the current policy, in a forward of their own.

        Args:
            batch: TRL's ``prompt_ids``, ``prompt_mask``, ``completion_ids`` and ``completion_mask``.
            second_order: Also Σ S² and the curvature.
        """
        trainer = self._trainer
        # Nothing follows the last token, so it need not be read.
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"][:, :-1]], dim=1)
        attention_mask = torch.cat([batch["prompt_mask"], batch["completion_mask"][:, :-1]], dim=1)
        length = batch["completion_ids"].shape[1]
        avoid_logits = self.vocab_size >= LARGE_VOCABULARY and not self.obstacle(ids, attention_mask)
        keep = 1 if avoid_logits else length
        takes_keep = "logits_to_keep" in inspect.signature(self.base.forward).parameters
        rows = self._rows(ids.device, keep if takes_keep else ids.shape[1])
        parts = []
        with self._evaluating():
            for start in range(0, ids.shape[0], rows):
                block = slice(start, start + rows)
                tokens = batch["completion_ids"][block]
                watched: AbstractContextManager[list[Tensor]] = self.watch() if avoid_logits else nullcontext([])
                with watched as seen, trainer.accelerator.autocast():
                    logits = trainer.model(
                        input_ids=ids[block],
                        attention_mask=attention_mask[block],
                        use_cache=False,
                        **({"logits_to_keep": keep} if takes_keep else {}),
                    ).logits
                if avoid_logits:
                    parts.append(self.from_hidden(seen[-1][:, -length:], tokens, second_order))
                else:
                    temperature = float(trainer.temperature)
                    kept = logits[:, -length:]
                    parts.append(token_statistics(kept, tokens, temperature=temperature, second_order=second_order))
                del seen, logits
        return joined(parts)

    def _rows(self, device: torch.device, positions: int) -> int:
        """Rows of a block, the same on every rank whatever its completions: wrapped models meet in a forward.

        Two micro-batches at a time: without a gradient they need less memory than one with it.
        """
        accelerator = self._trainer.accelerator
        budget = LOGITS_BUDGET // (4 * self.vocab_size * positions)
        rows = max(1, min(2 * self._trainer.args.per_device_train_batch_size, budget))
        if accelerator.num_processes > 1:
            rows = int(accelerator.gather(torch.tensor([rows], device=device)).min())
        return rows

    @torch.no_grad()
    def along(
        self, forward: Callable[[], Any], ids: Tensor, attention_mask: Tensor, length: int, second_order: bool
    ) -> tuple[Any, TokenStatistics | None]:
        """Score during TRL's own forward for the old log-probabilities.

        With a large vocabulary TRL's forward is replaced by one that yields its log-probabilities and entropies
        among the statistics, so that the product with the output matrix is made once; they then agree with TRL's to
        rounding. Below, TRL's forward runs as it is and its hidden states are read.

        Args:
            forward: TRL's forward.
            ids: Prompt and completion, (B, P + T).
            attention_mask: Likewise.
            length: T.
            second_order: Also Σ S² and the curvature.

        Returns:
            What the forward returned, and the statistics; None where they must be computed apart.
        """
        if self.dropout() or self.obstacle(ids, attention_mask):
            return forward(), None
        if self.vocab_size < LARGE_VOCABULARY:
            with self.watch() as seen:
                output = forward()
            tokens, rows = ids[:, -length:], [0]
            for hidden in seen:
                rows.append(rows[-1] + hidden.shape[0])
            blocks = zip(seen, rows, rows[1:], strict=False)
            return output, joined(
                [self.from_hidden(h[:, -length - 1 : -1], tokens[a:b], second_order) for h, a, b in blocks]
            )
        split = {
            "prompt_ids": ids[:, :-length],
            "completion_ids": ids[:, -length:],
            "prompt_mask": attention_mask[:, :-length],
            "completion_mask": attention_mask[:, -length:],
        }
        found = self.score(split, second_order)
        return (found.log_probs, found.entropy, None), found


def _whole(parameter: Tensor) -> Tensor:
    """Gather a parameter that FSDP2 has sharded."""
    return parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter


def joined(parts: list[TokenStatistics]) -> TokenStatistics:
    """Put the statistics of blocks of rows one below the other."""
    fields: dict[str, Any] = {name: torch.cat([getattr(part, name) for part in parts]) for name in _FIELDS}
    for name in _SECOND_ORDER:
        values = [getattr(part, name) for part in parts]
        fields[name] = None if values[0] is None else torch.cat(values)
    return TokenStatistics(**fields, impl=parts[0].impl)
