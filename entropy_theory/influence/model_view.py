"""A step's tokens seen through a causal language model: logits and gradients as functions of what trains."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from entropy_theory.errors import invalid
from entropy_theory.influence.step_batch import StepBatch
from entropy_theory.vocab import token_statistics

Parameters = dict[str, Tensor]

_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)

LOGITS_BUDGET = 1 << 25
"""Logits that one forward may hold, in bytes; a derivative holds some copies of them."""


class ModelView:
    """A batch seen through a model, in float32 or wider, without touching the model's weights or gradients.

    Args:
        model: Maps ``input_ids`` and ``attention_mask`` to an object with ``.logits``; causal.
        batch: The tokens.
        parameters: The weights that train, by name; default: those of the model that require a gradient.

    Raises:
        ValueError: No token is valid, no parameter requires a gradient, or the model is not such a one.
    """

    def __init__(self, model: nn.Module, batch: StepBatch, parameters: Mapping[str, Tensor] | None = None) -> None:
        if not isinstance(batch, StepBatch):
            raise invalid("batch", "a StepBatch", type(batch).__name__)
        self.model, self.batch = model, batch
        self.mask = batch.valid
        self.count = int(self.mask.sum())
        if not self.count:
            raise invalid("batch", "at least one valid token", "none")
        trained = parameters or {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not trained:
            raise invalid("model", "parameters that require a gradient", "none: all are frozen")
        if any(value.is_inference() for value in trained.values()):
            raise invalid("model", "parameters made outside torch.inference_mode", "inference tensors")
        self.dtype = torch.float32
        for value in trained.values():
            self.dtype = torch.promote_types(self.dtype, value.dtype)
        self.start = {name: value.detach().to(self.dtype) for name, value in trained.items()}
        self._frozen = {
            name: value.detach().to(self.dtype)
            for values in (model.named_parameters(), model.named_buffers())
            for name, value in values
            if name not in trained and value.is_floating_point() and value.dtype.itemsize < self.dtype.itemsize
        }
        self.ids = torch.cat([batch.prompt_ids, batch.completion_ids], dim=1)
        _check_vocabulary(self.base, self.ids)
        self.attention = torch.cat([batch.prompt_mask.bool(), batch.completion_mask.bool()], dim=1).long()
        self.length = batch.completion_ids.shape[1]
        takes = inspect.signature(as_written(model).forward).parameters
        keeps = "logits_to_keep" in {*takes, *inspect.signature(self.base.forward).parameters}
        anything = any(p.kind is p.VAR_KEYWORD for p in takes.values())
        given = {"input_ids", "attention_mask"}
        required = {name for name, p in takes.items() if p.default is p.empty and p.kind in _BY_NAME}
        if (not anything and not given <= {*takes}) or required - given:
            raise invalid("model", "a forward of input_ids and attention_mask alone", f"forward({', '.join(takes)})")
        self._options: dict[str, Any] = {"use_cache": False} if "use_cache" in takes or anything else {}
        if keeps:
            self._options["logits_to_keep"] = self.length + 1
        self._size: int | None = None

    @property
    def base(self) -> Any:
        """The language model without adapters."""
        return unwrapped(self.model)

    def logits(self, parameters: Mapping[str, Tensor], rows: Tensor) -> Tensor:
        """Tempered logits z/T before each completion token of some rows, (b, T, V)."""
        inputs = {"input_ids": self.ids[rows], "attention_mask": self.attention[rows]} | self._options
        output = functional_call(self.model, {**self._frozen, **parameters}, (), inputs)
        logits = getattr(output, "logits", None)
        if not isinstance(logits, Tensor):
            received = type(output).__name__ if logits is None else f"{type(logits).__name__} as its .logits"
            raise invalid("model", "a model whose output has .logits, a tensor", received)
        if logits.dim() != 3 or logits.shape[0] != len(rows) or logits.shape[1] <= self.length:
            expected = f"logits ({len(rows)}, at least {self.length + 1}, V)"
            raise invalid("model", expected, f"shape {tuple(logits.shape)}")
        return logits[:, -self.length - 1 : -1].to(self.dtype) / self.batch.temperature

    def blocks(self, rows: Tensor | None = None) -> Iterator[Tensor]:
        """Those of some rows, by number, that have a valid token; as many at a time as one forward may hold."""
        if self._size is None:
            row = self.mask.any(-1).nonzero()[:1, 0]
            with torch.no_grad():
                first = self.logits(self.start, row)
            if not bool(torch.isfinite(first[self.mask[row]].amax(-1)).all()):
                raise invalid("model", "finite logits", "NaN or infinity")
            self._size = max(1, LOGITS_BUDGET // (first.numel() * first.element_size()))
        valid = self.mask.any(-1)
        if rows is not None:
            valid = valid & torch.zeros_like(valid).index_fill(0, rows, True)
        yield from valid.nonzero()[:, 0].split(self._size)

    def put(self, whole: Tensor, rows: Tensor, values: Tensor) -> None:
        """Put one number per valid token of some rows, in row order, to its place in (B, T)."""
        inside = torch.zeros_like(self.mask)
        inside[rows] = self.mask[rows]
        whole[inside] = values

    def gradient(
        self, *, entropy: Tensor | None = None, log_probs: Tensor | None = None, rows: Tensor | None = None
    ) -> tuple[Parameters, Tensor]:
        """Differentiate Σ_t (a_t h_t + b_t log p_t) over the valid tokens of some rows.

        Args:
            entropy: a, (B, T); None for 0.
            log_probs: b, (B, T); None for 0.
            rows: By number; None for all.

        Returns:
            The gradient by the name of what trains, and the entropies h of those rows, (B, T).
        """
        total = {name: torch.zeros_like(value) for name, value in self.start.items()}
        leaves = {name: value.detach().requires_grad_() for name, value in self.start.items()}
        heights = torch.zeros(self.mask.shape, dtype=self.dtype, device=self.mask.device)
        for block in self.blocks(rows):
            inside = self.mask[block]
            tokens = self.batch.completion_ids[block][inside]
            with torch.enable_grad():
                statistics = token_statistics(self.logits(leaves, block)[inside], tokens)
                terms = ((entropy, statistics.entropy), (log_probs, statistics.log_probs))
                value = torch.stack([(w[block][inside] * term).sum() for w, term in terms if w is not None]).sum()
            if not bool(torch.isfinite(value)):
                raise invalid("model", "finite entropies and log-probabilities of valid tokens", "NaN or infinity")
            if not value.requires_grad:
                raise invalid("model", "logits that depend on what trains", "logits without a gradient")
            parts = torch.autograd.grad(value, list(leaves.values()), materialize_grads=True)
            for name, part in zip(leaves, parts, strict=True):
                total[name] += part
            self.put(heights, block, statistics.entropy.detach())
        for name, slope in total.items():
            if not bool(torch.isfinite(slope).all()):
                raise invalid("model", "finite gradients", f"NaN or infinity in that of {name}")
        return total, heights


def entropy_gradient(model: nn.Module, batch: StepBatch) -> tuple[Parameters, Tensor]:
    """Differentiate the mean entropy of a step's contexts: ∇_θ H̄ with H̄ = (1/n) Σ_t h_t over its n valid tokens.

    Args:
        model: A causal language model; its weights, gradients and mode are left as they are.
        batch: The tokens.

    Returns:
        ∇H̄ by the name of what trains, nats, float32 or wider; and h_t, (B, T), zero at invalid positions.

    Raises:
        ValueError: No token is valid, nothing trains, or the model gives numbers that are not finite.
    """
    with observed(model):
        view = ModelView(model, batch)
        with full_precision(view.dtype):
            share = torch.full(view.mask.shape, 1 / view.count, dtype=view.dtype, device=view.mask.device)
            return view.gradient(entropy=share)


@contextmanager
def observed(model: Any, *, forward_mode: bool = False) -> Iterator[None]:
    """Put a model into the state in which it is measured, and back.

    In evaluation mode (no dropout, no gradient checkpointing), without autocast, a trainer's patch of its forward, a
    compiled graph or inference mode, and with attention written out where forward-mode derivatives are wanted, which
    fused attention lacks on the CPU.

    Args:
        model: The model.
        forward_mode: Whether forward-mode derivatives go through it.
    """
    _check_module(model)
    training = [module for module in model.modules() if module.training]
    patched = [(m, vars(m).pop("forward")) for m in {as_written(model), unwrapped(model)} if "forward" in vars(m)]
    config = getattr(model, "config", None)
    own = getattr(config, "_attn_implementation", None) if hasattr(model, "set_attn_implementation") else None
    written_out = forward_mode and own not in (None, "eager")
    attention = _attention(config) if written_out else None
    model.eval()
    try:
        if written_out:
            model.set_attn_implementation("eager")
        with ExitStack() as stack:
            for kind in {parameter.device.type for parameter in model.parameters()} - {"meta"}:
                stack.enter_context(torch.autocast(kind, enabled=False))  # a backward has autocast's state, too
            stack.enter_context(torch.inference_mode(False))
            if any("_orig_mod" in m._modules or m._compiled_call_impl is not None for m in model.modules()):
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            yield
    finally:
        for module, forward in patched:
            module.forward = forward
        for module in training:
            module.training = True
        if written_out:
            model.set_attn_implementation(attention)


def _attention(config: Any) -> Any:
    """The attention of a model, and by name that of the models inside which have a configuration of their own."""
    inside = {name: getattr(config, name, None) for name in getattr(config, "sub_configs", ())}
    parts = {name: _attention(part) for name, part in inside.items() if part is not None}
    return {"": config._attn_implementation, **parts} if parts else config._attn_implementation


def _check_module(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise invalid("model", "a torch module", type(model).__name__)


def _check_vocabulary(base: Any, ids: Tensor) -> None:
    embeddings = base.get_input_embeddings() if hasattr(base, "get_input_embeddings") else None
    known = getattr(embeddings, "num_embeddings", None)
    if known is not None and ids.numel() and int(ids.max()) >= known:
        raise invalid("batch", f"token ids below {known}, the size of the model's embedding", int(ids.max()))


def as_written(model: Any) -> Any:
    """Return the module that `torch.compile` was given, or the model itself."""
    return getattr(model, "_orig_mod", model)


def unwrapped(model: Any) -> Any:
    """Return the language model inside adapters and a compiled module."""
    model = as_written(model)
    return model.get_base_model() if hasattr(model, "get_base_model") else model


class _KeepFloat64(TorchFunctionMode):
    """Turns the float32 that models cast to inside (norms, rotary angles, the softmax of attention) into float64."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.float:
            func = Tensor.double
        args = tuple(torch.float64 if a is torch.float32 else a for a in args)
        return func(*args, **{k: torch.float64 if v is torch.float32 else v for k, v in (kwargs or {}).items()})


@contextmanager
def full_precision(dtype: torch.dtype) -> Iterator[None]:
    """Keep float64 where a model casts to float32 by itself; nothing for other dtypes."""
    if dtype is torch.float64:
        with _KeepFloat64():
            yield
    else:
        yield


def inner_product(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """⟨a, b⟩ over all parameters, summed in float64."""
    return float(sum((a[name] * b[name]).sum(dtype=torch.float64) for name in a))
