"""The output layer of a causal language model: whether its logits are one product, and how many may exist at once.

Where the logits are z = κ tanh((h Wᵀ + b)/κ), h the last hidden states, token statistics are computed from h and W tile
by tile and no logits are kept. That is never assumed: the model's own logits are compared with the product first. This
module needs no trainer.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from entropy_theory.vocab import TokenStatistics, token_statistics_from_hidden

# Logits that a forward may hold at once, in bytes of float32, where they are needed at all.
LOGITS_BUDGET = 1 << 28

# From this vocabulary on the logits are avoided. Below it they cost less than the hidden states.
LARGE_VOCABULARY = 4096


def positions_within_budget(vocab_size: int) -> int:
    """Count the positions whose logits may exist at once: at least 1.

    Example:
        >>> positions_within_budget(151_936)
        441
    """
    return max(1, LOGITS_BUDGET // (4 * vocab_size))


def capped(logits: Tensor, softcap: float | None) -> Tensor:
    """Compute κ tanh(z/κ) in float32 or wider; without a cap, z."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def product_logits(hidden: Tensor, matrix: Tensor, bias: Tensor | None = None, softcap: float | None = None) -> Tensor:
    """Compute z = κ tanh((h Wᵀ + b)/κ) in float32 or wider from a product in the dtype of ``hidden``, (..., V)."""
    return capped(nn.functional.linear(hidden, matrix, bias), softcap)


def is_product(
    logits: Tensor, hidden: Tensor, matrix: Tensor, bias: Tensor | None = None, softcap: float | None = None
) -> bool:
    """Say whether logits are z = κ tanh((h Wᵀ + b)/κ) to rounding.

    The tolerance of logit i is 4 ε |z_i| + 8 ε' ‖h‖ ‖W_i‖: ε of the dtype of the product, since the product and the
    three operations of the cap are each rounded to it; ε' of its accumulation, since d terms added in another order
    differ by about ε' ‖h‖ ‖W_i‖. A scale, a mask or a further layer is off by more.

    Args:
        logits: What the model returned, (..., V).
        hidden: h, (..., d).
        matrix: W, (V, d).
        bias: b, (V,).
        softcap: κ.

    Example:
        >>> hidden, matrix = torch.eye(2, 3), torch.arange(12.0).reshape(4, 3)
        >>> is_product(hidden @ matrix.T, hidden, matrix), is_product(1.001 * hidden @ matrix.T, hidden, matrix)
        (True, False)
    """
    rebuilt = product_logits(hidden, matrix, bias, softcap)
    if rebuilt.shape != logits.shape:
        return False
    accumulation = torch.finfo(rebuilt.dtype).eps
    if hidden.is_cuda and hidden.dtype is torch.float32 and torch.get_float32_matmul_precision() != "highest":
        accumulation = 2.0**-10 / math.sqrt(hidden.shape[-1])  # TF32 rounds each of the d factors to 10 bits
    lengths = hidden.to(rebuilt.dtype).norm(dim=-1, keepdim=True) * matrix.norm(dim=-1).to(rebuilt.dtype)
    slack = 4 * torch.finfo(hidden.dtype).eps * rebuilt.abs() + 8 * accumulation * lengths
    # Equal infinities have no difference that is a number.
    return bool(((logits == rebuilt) | ((logits.to(rebuilt.dtype) - rebuilt).abs() <= slack)).all())


class OutputLayer:
    """The output layer of a causal language model, read at every use because training moves it.

    Args:
        model: The language model without wrappers and adapters.
        float32: Whether the model multiplies in float32 whatever the dtype of its weights.
    """

    def __init__(self, model: Any, *, float32: bool = False) -> None:
        self.model = model
        self.float32 = float32

    @property
    def vocab_size(self) -> int:
        """V."""
        return int(self.model.config.get_text_config().vocab_size)

    @property
    def softcap(self) -> float | None:
        """κ."""
        cap = getattr(self.model.config.get_text_config(), "final_logit_softcapping", None)
        return None if cap is None else float(cap)

    @property
    def takes_logits_to_keep(self) -> bool:
        """Whether the model can be asked for the logits of its last positions only."""
        return "logits_to_keep" in inspect.signature(self.model.forward).parameters

    @torch.no_grad()
    def obstacle(self, run: Callable[[], Tensor]) -> str:
        """Say why the logits are not κ tanh((h Wᵀ + b)/κ); "" when they are.

        Args:
            run: Runs the model on a few tokens and returns its logits, (B, T, V), or those of the last positions.
        """
        model, name = self.model, type(self.model).__name__
        head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        if not isinstance(head, nn.Linear) or getattr(model, "base_model", model) is model:
            return f"the output layer of {name} is {type(head).__name__}, not a linear layer"
        weight = _whole(head.weight)
        if weight.ndim != 2 or weight.shape[1] != head.in_features or weight.shape[0] != head.out_features:
            return "the output matrix is not whole on this rank"
        with self.watch() as seen:
            logits = run()
        if not seen:
            return f"{type(model.base_model).__name__} did not run as a module"
        hidden, matrix, bias = self.operands(seen[-1][:, -logits.shape[1] :])
        same = is_product(logits, hidden, matrix, bias, self.softcap)
        return "" if same else f"the logits of {name} are not a product with its output matrix"

    @contextmanager
    def watch(self, detach: bool = True) -> Iterator[list[Tensor]]:
        """Collect the last hidden states, (B, T, d), of every forward of the model inside the block.

        Args:
            detach: Whether without their gradient.
        """
        seen: list[Tensor] = []

        def keep(module: Any, arguments: Any, output: Any) -> None:
            hidden = output.last_hidden_state if hasattr(output, "last_hidden_state") else output[0]
            seen.append(hidden.detach() if detach else hidden)

        hook = self.model.base_model.register_forward_hook(keep)
        try:
            yield seen
        finally:
            hook.remove()

    def operands(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """h, W and b in the dtype in which the model multiplies them; under autocast, in its dtype."""
        head = self.model.get_output_embeddings()
        weight, bias = _whole(head.weight), None if head.bias is None else _whole(head.bias)
        kind, dtype = hidden.device.type, weight.dtype
        if self.float32:
            dtype = torch.float32
        elif torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
        return hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)

    def statistics(
        self,
        operands: tuple[Tensor, Tensor, Tensor | None],
        tokens: Tensor,
        *,
        temperature: float = 1.0,
        second_order: bool = False,
    ) -> TokenStatistics:
        """Score tokens, (...), from the hidden states before them, (..., d), without their logits.

        Args:
            operands: What `operands` made of the hidden states.
            tokens: Their next tokens.
            temperature: T.
            second_order: Also Σ S² and the curvature.
        """
        hidden, matrix, bias = operands
        return token_statistics_from_hidden(
            hidden,
            matrix,
            tokens,
            bias=bias,
            softcap=self.softcap,
            temperature=temperature,
            second_order=second_order,
        )


def _whole(parameter: Tensor) -> Tensor:
    """Gather a parameter that FSDP2 has sharded."""
    return parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter
