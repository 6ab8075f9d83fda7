"""Token statistics of sampled completions under the model that TRL trains.

With a large vocabulary they come from the hidden states and the output matrix, tile by tile, so that no logits are
kept; where the output layer is more than a matrix, a bias and a soft cap, from the logits, a few rows at a time. Where
TRL runs the policy over the batch for its old log-probabilities, that forward is the only one.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from entropy_theory.bridge.trl.host import HostTrainer
from entropy_theory.bridge.trl.shared_product import SharedProduct
from entropy_theory.vocab import TokenStatistics, token_statistics
from entropy_theory.vocab.model_head import LARGE_VOCABULARY, OutputLayer, positions_within_budget
from entropy_theory.vocab.statistics import FIELDS, SECOND_ORDER_FIELDS


class Scorer:
    """Scores the completions of a trainer's batches.

    Args:
        host: The trainer; its model, accelerator and temperature are read at every call.
    """

    def __init__(self, host: HostTrainer) -> None:
        self._host = host
        self._wrapped: Any = None
        self._layer: Any = None
        self._obstacle: str | None = None  # what `obstacle` found
        self._noise: str | None = None  # what `noise` found

    @property
    def layer(self) -> OutputLayer:
        """The output layer of the language model inside wrappers and adapters."""
        wrapped = self._host.model
        if wrapped is not self._wrapped:  # unwrapping walks all modules; it is wrapped once, when training begins
            model = self._host.accelerator.unwrap_model(wrapped)
            model = model.get_base_model() if hasattr(model, "get_base_model") else model
            float32 = getattr(self._host.args, "cast_lm_head_to_fp32", False)
            self._wrapped, self._layer = wrapped, OutputLayer(model, float32=float32)
        return self._layer

    @property
    def avoids_logits(self) -> bool:
        """Whether the vocabulary is so large that logits are not to be kept."""
        return self.layer.vocab_size >= LARGE_VOCABULARY

    def named_noise(self) -> str | None:
        """Name an option or a module that makes the training forward random; not every noise has a name."""
        model = self.layer.model
        for name, module in model.named_modules():
            if isinstance(module, nn.Dropout) and module.p > 0:
                return name
        if getattr(self._host.args, "neftune_noise_alpha", None):
            return "neftune_noise_alpha"
        for name, value in vars(model.config.get_text_config()).items():
            # applied as functions, without a module
            kinds = ("attention_dropout", "jitter", "noise", "layerdrop")
            if isinstance(value, float) and value > 0 and any(kind in name for kind in kinds):
                return name
        return None

    def noise(self, batch: Mapping[str, Tensor]) -> str:
        """Say what makes the training forward another policy than the one that samples; "" when nothing does.

        Beyond what has a name, which may be switched on at any time, the training forward over one row is tried, once:
        whether it draws random numbers, or gives other hidden states than evaluation.
        """
        if not self._noise:
            reason = self.named_noise() or ""
            if self._noise is None and not reason and self._differs(batch):
                reason = "the training forward is not that of evaluation"
            self._noise = self._agreed(reason, "noise on another rank")
        return self._noise

    @torch.no_grad()
    def _differs(self, batch: Mapping[str, Tensor]) -> bool:
        ids, attention_mask = (
            torch.cat([batch[f"prompt_{n}"], batch[f"completion_{n}"]], 1)[:1] for n in ("ids", "mask")
        )
        options = {"logits_to_keep": 1} if self.layer.takes_logits_to_keep else {}

        def hidden() -> Tensor:
            with self.layer.watch() as seen, self._host.accelerator.autocast():
                self._host.model(input_ids=ids, attention_mask=attention_mask, use_cache=False, **options)
            return seen[-1][attention_mask.bool()]

        with self._evaluating():
            expected = hidden()
        before = random_states(ids.device)
        with torch.random.fork_rng(devices=[ids.device] if ids.is_cuda else []):  # no draw of the run is used up
            found = hidden()
            drawn = random_states(ids.device) != before
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002  (the generator that models draw from)
        if drawn:  # noise that left this row alone, such as a layer that is skipped now and then
            return True
        # A kernel may add in another order; noise is larger, since whoever adds it means it to be felt.
        return bool((found - expected).abs().max() > 64 * torch.finfo(found.dtype).eps * expected.abs().max())

    def obstacle(self, batch: Mapping[str, Tensor]) -> str:
        """Say why the logits cannot be computed from hidden states; "" when they can. Tried once, on one position."""
        if self._obstacle is None:
            self._obstacle = self._agreed(self._try_on(batch), "another rank's is not")
            if self._obstacle and self.avoids_logits:
                warnings.warn(
                    f"entropy control scores from logits, a few rows at a time: {self._obstacle}", stacklevel=2
                )
        return self._obstacle

    def _try_on(self, batch: Mapping[str, Tensor]) -> str:
        if not self.layer.takes_logits_to_keep:
            return f"{type(self.layer.model).__name__} has no logits_to_keep"
        ids, attention_mask = (
            torch.cat([batch[f"prompt_{n}"], batch[f"completion_{n}"]], 1)[:1] for n in ("ids", "mask")
        )
        inputs = {"input_ids": ids, "attention_mask": attention_mask, "use_cache": False, "logits_to_keep": 1}
        with self._evaluating(), self._host.accelerator.autocast():
            return self.layer.obstacle(lambda: self._host.model(**inputs).logits[:, -1:])

    def _agreed(self, reason: str, elsewhere: str) -> str:
        """Let one rank's reason be every rank's: they must meet in the same forwards."""
        accelerator = self._host.accelerator
        if accelerator.num_processes > 1:
            given = torch.tensor([int(bool(reason))], device=accelerator.device)
            reason = reason or (elsewhere if int(accelerator.gather(given).max()) else "")
        return reason

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Run without dropout, which would score another policy than the one that sampled, and use up random draws."""
        model = self._host.model
        before = {module: module.training for module in model.modules()}  # a user may keep some of them in evaluation
        model.eval()
        try:
            yield
        finally:
            for module, training in before.items():
                module.training = training

    def from_hidden(
        self, hidden: Tensor, tokens: Tensor, second_order: bool = False, gradient: bool = False
    ) -> TokenStatistics:
        """Score tokens, (B, T), from the hidden states before them, (B, T, d)."""
        with torch.set_grad_enabled(gradient):
            with self._host.accelerator.autocast():  # which decides the dtype of the product
                operands = self.layer.operands(hidden)
            temperature = float(self._host.temperature)
            return self.layer.statistics(operands, tokens, temperature=temperature, second_order=second_order)

    def shared_product(self, tokens: Tensor, order: Tensor, prompt_length: int, second_order: bool) -> SharedProduct:
        """Prepare to read TRL's product in a forward over its batch, of which row ``order[i]`` is row i of tokens."""
        return SharedProduct(
            tokens,
            order,
            prompt_length,
            vocab_size=self.layer.model.get_output_embeddings().out_features,
            softcap=self.layer.softcap,
            temperature=float(self._host.temperature),
            second_order=second_order,
        )

    @torch.no_grad()
    def score(self, batch: Mapping[str, Tensor], second_order: bool = False) -> TokenStatistics:
        """Compute the token statistics of the completions under the current policy, in a forward of their own.

        Args:
            batch: TRL's ``prompt_ids``, ``prompt_mask``, ``completion_ids`` and ``completion_mask``.
            second_order: Also Σ S² and the curvature.
        """
        host = self._host
        # Nothing follows the last token, so it need not be read.
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"][:, :-1]], dim=1)
        attention_mask = torch.cat([batch["prompt_mask"], batch["completion_mask"][:, :-1]], dim=1)
        length = batch["completion_ids"].shape[1]
        from_hidden = self.avoids_logits and not self.obstacle(batch)
        keep = 1 if from_hidden else length
        options = {"logits_to_keep": keep} if self.layer.takes_logits_to_keep else {}
        rows = self._rows(ids.device, keep if options else ids.shape[1])
        parts = []
        with self._evaluating():
            for start in range(0, ids.shape[0], rows):
                block = slice(start, start + rows)
                tokens = batch["completion_ids"][block]
                inputs = {"input_ids": ids[block], "attention_mask": attention_mask[block], "use_cache": False}
                watched: AbstractContextManager[list[Tensor]] = self.layer.watch() if from_hidden else nullcontext([])
                with watched as seen, host.accelerator.autocast():
                    logits = host.model(**inputs, **options).logits
                if from_hidden:
                    parts.append(self.from_hidden(seen[-1][:, -length:], tokens, second_order))
                else:
                    kept, temperature = logits[:, -length:], float(host.temperature)
                    parts.append(token_statistics(kept, tokens, temperature=temperature, second_order=second_order))
                del seen, logits
        return joined(parts)

    def _rows(self, device: torch.device, positions: int) -> int:
        """Rows of a block, the same on every rank whatever its completions: wrapped models meet in a forward.

        Two micro-batches at a time: without a gradient they need less memory than one with it.
        """
        accelerator = self._host.accelerator
        within = positions_within_budget(self.layer.vocab_size) // positions
        rows = max(1, min(2 * self._host.args.per_device_train_batch_size, within))
        if accelerator.num_processes > 1:
            rows = int(accelerator.gather(torch.tensor([rows], device=device)).min())
        return rows

    @torch.no_grad()
    def beside(
        self, run_forward: Callable[[], Any], ids: Tensor, attention_mask: Tensor, length: int, second_order: bool
    ) -> tuple[Any, TokenStatistics | None]:
        """Score during TRL's own forward for the old log-probabilities.

        With a large vocabulary TRL's forward is replaced by one that yields its log-probabilities and entropies
        among the statistics, so that the product with the output matrix is made once; they then agree with TRL's to
        rounding. Below, TRL's forward runs as it is and its hidden states are read.

        Args:
            run_forward: TRL's forward.
            ids: Prompt and completion, (B, P + T).
            attention_mask: Likewise.
            length: T.
            second_order: Also Σ S² and the curvature.

        Returns:
            What the forward returned, and the statistics; None where they must be computed apart.
        """
        batch = {
            "prompt_ids": ids[:, :-length],
            "completion_ids": ids[:, -length:],
            "prompt_mask": attention_mask[:, :-length],
            "completion_mask": attention_mask[:, -length:],
        }
        if self.noise(batch) or self.obstacle(batch):
            return run_forward(), None
        if self.avoids_logits:
            statistics = self.score(batch, second_order)
            return (statistics.log_probs, statistics.entropy, None), statistics
        with self.layer.watch() as seen:
            output = run_forward()
        blocks = batch["completion_ids"].split([len(hidden) for hidden in seen])
        pairs = zip((hidden[:, -length - 1 : -1] for hidden in seen), blocks, strict=True)
        return output, joined([self.from_hidden(hidden, tokens, second_order) for hidden, tokens in pairs])


def random_states(device: torch.device) -> tuple[Any, ...]:
    """The states of the generators of Python, NumPy, torch on the CPU and on the device."""
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002
    tensors = [torch.get_rng_state()] + ([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])
    return random.getstate(), (kind, tuple(keys), *rest), [tensor.tolist() for tensor in tensors]


def joined(parts: list[TokenStatistics]) -> TokenStatistics:
    """Put the statistics of blocks of rows one below the other."""
    fields: dict[str, Any] = {}
    for name in (*FIELDS, *SECOND_ORDER_FIELDS):
        values = [getattr(part, name) for part in parts]
        fields[name] = None if values[0] is None else torch.cat(values)
    return TokenStatistics(**fields, impl=parts[0].impl)
