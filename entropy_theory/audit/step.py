"""One optimizer step of a real model, measured position by position on the batch that it was made from.

What the step did to the entropy of each position is set beside what the theory says it would do: the tabular theory,
which lets every token (or every context) have logits of its own, and the first order in the parameters,
⟨∇_θ H_t, Δθ⟩, which is exact but for the curvature. The step is taken apart as

    Δθ = η κ Σ_t c_t ∇log p_t  +  η (−g − κ Σ_t c_t ∇log p_t)  +  (u + η g)  +  (Δθ − u)

with c_t = ∂J/∂log p_t as the rule left it over the number of tokens, g the gradient the optimizer got, κ the factor of
the gradient clipping, and u the update that the optimizer makes of g alone. The first part is split over t: the
position's own token, the other tokens of its context, and the other contexts (sharing, section B.15 of the theory
notes). The second is no policy gradient (0 but for rounding without a KL penalty), the third is preconditioning, the
last what earlier steps left: momentum, weight decay, and the rounding of the weights.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributions import Categorical
from torch.func import functional_call, grad, jvp

from entropy_theory import records
from entropy_theory.control import TokenBatch
from entropy_theory.errors import invalid
from entropy_theory.influence import StepBatch
from entropy_theory.influence.held_out import token_scores
from entropy_theory.influence.model_view import ModelView, Parameters, full_precision, inner_product
from entropy_theory.vocab import TokenStatistics, token_statistics
from entropy_theory.vocab.model_head import OutputLayer

PIECES = ("own", "context", "sharing", "rest", "preconditioning", "momentum")
"""The parts of the first order at a position, in the order of the module's formula."""


def measurable(model: Any, precision: str) -> nn.Module:
    """Copy a model into one that forward-mode derivatives and the wanted precision can go through.

    Args:
        model: A causal language model of transformers.
        precision: "float64" or "float32".
    """
    twin = copy.deepcopy(model).to(getattr(torch, precision)).eval().requires_grad_(False)
    vars(twin).pop("forward", None)  # a trainer's patch of it would be bound to the model that was copied
    if hasattr(twin, "set_attn_implementation"):
        twin.set_attn_implementation("eager")  # the fused attention of the CPU has no forward-mode derivative
    return twin


def measure_step(
    model: nn.Module,
    before: Parameters,
    after: Parameters,
    gradient: Parameters,
    batch: StepBatch,
    *,
    alone: Parameters | None = None,
    positions: int = 256,
    seed: int = 0,
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Compare what a step did to entropy with what the theory predicts, at every position of its batch.

    Args:
        model: What `measurable` returns, or any module that maps ``input_ids`` and ``attention_mask`` to ``.logits``.
        before: The trained parameters before the step, by name.
        after: After it.
        gradient: g, the gradient of the loss that the optimizer got, after clipping.
        batch: The tokens.
        alone: u, the update that the optimizer makes of g alone; default: −η g, as plain SGD.
        positions: Positions at which the step is taken apart; all if there are fewer.
        seed: Of the choice of the positions.

    Returns:
        Arrays over the n valid positions in row order: ``entropy``, ``realised``; ``token_1``, ``token_2``: first and
        second order of the tabular theory for the position's own token, at the step size η; ``context_1``,
        ``context_2``: for all tokens of its context; ``parameters``: ⟨∇_θ H, Δθ⟩ by one Jacobian-vector product;
        ``quadrant``, ``group``. Over the chosen ones: ``chosen``, their indices, and a piece of the first order for
        each name of PIECES, by reverse-mode derivatives; ``output``, the part of own, context and sharing that goes
        through the output matrix, and ``output_closed``, the same from its closed form, for a head that is a matrix.
        Scalars: ``step_size`` η = −⟨Δθ, g⟩/‖g‖², the learning rate for plain SGD and otherwise the multiple of the
        gradient that comes nearest to the step; ``cosine`` of Δθ with −g; ``clip_factor`` κ; ``gradient_gap``
        ‖g + κ Σ c ∇log p‖/‖g‖; ``noise_floor``: root mean square change of H when every weight is off by half a unit in
        its last place.

    Raises:
        ValueError: There is no valid position, or the gradient or the step is zero or not finite.
    """
    view = _View(model, before, batch)
    delta = {name: after[name].to(view.dtype) - value for name, value in view.start.items()}
    g = {name: gradient[name].to(view.dtype) for name in view.start}
    norm = inner_product(g, g)
    step_size = -inner_product(delta, g) / norm if norm else 0.0
    if not step_size or not math.isfinite(step_size):
        raise invalid("gradient", "a finite gradient and a step along it, neither zero", f"norm {norm**0.5}")
    u = None if alone is None else {name: alone[name].to(view.dtype) for name in view.start}
    with full_precision(view.dtype):
        arrays = view.everywhere(delta)
        ascent, _ = view.gradient(log_probs=view.per_token / view.count)  # Σ c ∇log p
        clip = -inner_product(g, ascent) / inner_product(ascent, ascent)
        arrays["realised"] = view.entropies(after) - arrays["entropy"]
        scale = step_size * clip / batch.temperature**2
        for kind in ("token", "context"):
            arrays[f"{kind}_1"] *= scale
            arrays[f"{kind}_2"] *= scale**2
        arrays |= view.pieces(_Parts(step_size, clip, ascent, g, u, delta), positions, seed)
        noise_floor = view.noise_floor(arrays["entropy"], seed)
    gap = sum(float((g[name] + clip * ascent[name]).square().sum(dtype=torch.float64)) for name in g)
    scalars = {
        "step_size": step_size,
        "cosine": -inner_product(delta, g) / (inner_product(delta, delta) * norm) ** 0.5,
        "clip_factor": clip,
        "gradient_gap": (gap / norm) ** 0.5,
        "noise_floor": noise_floor,
        "gradient_norm": norm**0.5,
        "update_norm": inner_product(delta, delta) ** 0.5,
    }
    return {name: value.cpu() for name, value in arrays.items()}, scalars


def write_step(path: Path, arrays: dict[str, Tensor], scalars: dict[str, float]) -> None:
    """Write the arrays and scalars of a measured step."""
    records.save_arrays(path, {name: values.numpy() for name, values in arrays.items()}, scalars)


def read_step(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, float]]:
    """Read the arrays and scalars of a measured step.

    Raises:
        ValueError: The file is broken, or is not what was written.
    """
    return records.read_arrays(path)


@dataclass(frozen=True)
class _Parts:
    """What a step is made of: Δθ = η κ ascent + η (−g − κ ascent) + (u + η g) + (Δθ − u)."""

    step_size: float
    clip: float
    ascent: Parameters
    gradient: Parameters
    alone: Parameters | None
    delta: Parameters

    def along(self, slope: Parameters) -> dict[str, float]:
        """Inner products of ∇H at a position with the parts."""
        ascent = self.step_size * self.clip * inner_product(slope, self.ascent)
        plain = -self.step_size * inner_product(slope, self.gradient)
        u = plain if self.alone is None else inner_product(slope, self.alone)
        whole = inner_product(slope, self.delta)
        return {"ascent": ascent, "rest": plain - ascent, "preconditioning": u - plain, "momentum": whole - u}


class _View(ModelView):
    """A batch seen through a model: derivatives of the entropy at each position, and contexts."""

    def __init__(self, model: nn.Module, before: Parameters, batch: StepBatch) -> None:
        dtype = next(model.parameters()).dtype
        super().__init__(model, batch, {name: value.detach().to(dtype) for name, value in before.items()})
        self.tokens = batch.completion_ids[self.mask]
        self.per_token = torch.where(self.mask, batch.advantages.to(self.dtype), 0.0)
        self.coefficients = self.per_token[self.mask] / self.count
        contexts = batch.context_numbers()
        self.contexts = torch.unique(contexts[self.mask], return_inverse=True)[1]

    def placed_blocks(self) -> Iterator[tuple[Tensor, slice]]:
        """Rows that one forward may hold, and where their positions are among all."""
        done = 0
        for rows in self.blocks():
            here = slice(done, done + int(self.mask[rows].sum()))
            done = here.stop
            yield rows, here

    def entropies(self, parameters: Parameters) -> Tensor:
        """H at every valid position, (n,)."""
        return token_scores(self, parameters)[1][self.mask]

    @torch.no_grad()
    def everywhere(self, delta: Parameters) -> dict[str, Tensor]:
        """Everything that all positions get; the tabular orders for a step of 1."""
        names = ("entropy", "parameters", "token_1", "token_2", "quadrant")
        collected: dict[str, list[Tensor]] = {name: [] for name in names}
        shared = torch.bincount(self.contexts)[self.contexts] > 1
        of_shared: dict[int, Tensor] = {}  # logits of the contexts with several tokens; the vocabulary may be large
        for rows, here in self.placed_blocks():
            inside = self.mask[rows]

            def heights(parameters: Parameters, rows: Tensor = rows) -> tuple[Tensor, Tensor]:
                logits = self.logits(parameters, rows)
                return _entropy(logits), logits.detach()

            values: Any = jvp(heights, (self.start,), (delta,), has_aux=True)
            _, slope, logits = (value[inside] for value in values)
            c = self.coefficients[here]
            statistics = token_statistics(logits, self.tokens[here], second_order=True, impl="eager")
            assert statistics.grpo_curvature is not None  # asked for
            first, second = -c * statistics.centered_discriminant, 0.5 * c.square() * statistics.grpo_curvature
            quadrant = _quadrants(statistics, c)
            for name, value in zip(names, (statistics.entropy, slope, first, second, quadrant), strict=True):
                collected[name].append(value)
            for place in shared[here].nonzero()[:, 0].tolist():
                of_shared.setdefault(int(self.contexts[here][place]), logits[place].clone())
        arrays = {name: torch.cat(parts) for name, parts in collected.items()}
        arrays["coefficient"] = self.per_token[self.mask]
        sums = torch.zeros(int(self.contexts.max()) + 1, dtype=arrays["token_1"].dtype, device=self.contexts.device)
        arrays["context_1"] = sums.index_add(0, self.contexts, arrays["token_1"])[self.contexts]
        arrays["context_2"] = arrays["token_2"].clone()
        for context, logits in of_shared.items():
            together = self.contexts == context
            arrays["context_2"][together] = self._context_curvature(logits, together)
        arrays["group"] = self.batch.group_ids.to(self.mask.device)[:, None].expand_as(self.mask)[self.mask]
        return arrays

    def _context_curvature(self, z: Tensor, together: Tensor) -> Tensor:
        """½ d²/dα² H(z + α Σ_t c_t (e_t − p)) over the tokens of a context, by two Jacobian-vector products."""
        c = self.coefficients[together]
        direction = (-c.sum() * z.softmax(-1)).index_add(0, self.tokens[together], c)
        return 0.5 * jvp(lambda at: jvp(_entropy, (at,), (direction,))[1], (z,), (direction,))[1]

    def noise_floor(self, entropy: Tensor, seed: int) -> float:
        """Root mean square change of H when every weight is off by half a unit in its last place."""
        generator = torch.Generator().manual_seed(seed)
        off = {}
        for name, value in self.start.items():
            sign = torch.randint(0, 2, value.shape, generator=generator).to(value) * 2 - 1
            off[name] = value + 0.5 * torch.finfo(value.dtype).eps * sign * value
        return float((self.entropies(off) - entropy).square().mean().sqrt())

    def pieces(self, parts: _Parts, positions: int, seed: int) -> dict[str, Tensor]:
        """Take the first order apart at some positions, one backward pass for each quantity."""
        order = torch.randperm(self.count, generator=torch.Generator().manual_seed(seed))
        chosen = order[:positions].sort().values.to(self.mask.device)
        where = self.mask.nonzero()[chosen].tolist()
        head = self._head()
        collected: dict[str, list[float]] = {name: [] for name in PIECES}
        through_head = []
        scale = parts.step_size * parts.clip
        leaves = {name: value.detach().requires_grad_() for name, value in self.start.items()}
        for place, (row, time) in zip(chosen.tolist(), where, strict=True):
            end = self.batch.prompt_ids.shape[1] + time  # causal: what comes later does not matter
            inputs = {"input_ids": self.ids[row : row + 1, :end], "attention_mask": self.attention[row : row + 1, :end]}
            logits = functional_call(self.model, leaves, (), inputs | {"use_cache": False}).logits[0, -1]
            logits = logits / self.batch.temperature
            log_probs, together = logits.log_softmax(-1), self.contexts == self.contexts[place]
            own = self.coefficients[place] * log_probs[self.tokens[place]]
            slope = _gradient(_entropy(logits), leaves)
            along = parts.along(slope)
            mine = scale * inner_product(slope, _gradient(own, leaves))
            all_here = mine
            if together.sum() > 1:
                context = self.coefficients[together] @ log_probs[self.tokens[together]]
                all_here = scale * inner_product(slope, _gradient(context, leaves))
            collected["own"].append(mine)
            collected["context"].append(all_here - mine)
            collected["sharing"].append(along["ascent"] - all_here)
            for name in ("rest", "preconditioning", "momentum"):
                collected[name].append(along[name])
            if head is not None:
                through_head.append(scale * float((slope[head] * parts.ascent[head]).sum()))
        tensor = {name: torch.tensor(values, dtype=torch.float64) for name, values in collected.items()}
        tensor["chosen"] = chosen
        if head is not None:
            tensor["output"] = torch.tensor(through_head, dtype=torch.float64)
            closed = self._through_output_matrix(chosen, head, scale)
            if closed is not None:
                tensor["output_closed"] = closed
        return tensor

    # -- the output matrix --------------------------------------------------------------------------------------------

    def _head(self) -> str | None:
        """Name the output matrix among the trained parameters; None if it has none, or shares it."""
        model: Any = self.model
        if not hasattr(model, "get_output_embeddings"):
            return None
        weight = getattr(model.get_output_embeddings(), "weight", None)
        if weight is None or weight is getattr(model.get_input_embeddings(), "weight", None):
            return None
        return next((n for n, p in self.model.named_parameters() if p is weight and n in self.start), None)

    @torch.no_grad()
    def _through_output_matrix(self, chosen: Tensor, head: str, scale: float) -> Tensor | None:
        """Predict what the gradient step on the output matrix alone does to the entropy of the chosen positions.

        Section B.15 of the theory notes, h the hidden states, S^s_i = −∂H_s/∂z_i:

            ΔH_s = −η Σ_t c_t ⟨h_s, h_t⟩ [S^s_{y_t} − Σ_i p_{t,i} S^s_i]

        with tempered policies and η/T² in place of η. None where the logits are not the product of h and the matrix.
        """
        layer, states, matrix, T = OutputLayer(self.model), [], self.start[head], self.batch.temperature
        first = {"input_ids": self.ids[:1], "attention_mask": self.attention[:1], "use_cache": False}
        has_bias = layer.model.get_output_embeddings().bias is not None
        if has_bias or layer.softcap is not None or layer.obstacle(lambda: self.model(**first).logits):
            return None
        for rows, _ in self.placed_blocks():
            with layer.watch() as seen:
                self.logits(self.start, rows)
            states.append(seen[0][:, -self.length - 1 : -1][self.mask[rows]])
        h = torch.cat(states)
        mine = h[chosen]
        S = -grad(lambda z: _entropy(z).sum())(mine @ matrix.T / T)
        total = torch.zeros_like(mine[:, 0])
        for _, here in self.placed_blocks():
            bracket = S[:, self.tokens[here]] - S @ (h[here] @ matrix.T / T).softmax(-1).T
            total += ((mine @ h[here].T) * bracket) @ self.coefficients[here]
        return -scale / T**2 * total


def _entropy(logits: Tensor) -> Tensor:
    return Categorical(logits=logits, validate_args=False).entropy()


def _quadrants(statistics: TokenStatistics, coefficients: Tensor) -> Tensor:
    batch = TokenBatch(
        log_probs=statistics.log_probs[None],
        entropy=statistics.entropy[None],
        advantages=coefficients[None],
        completion_mask=torch.ones_like(coefficients[None], dtype=torch.bool),
        centered_discriminant=statistics.centered_discriminant[None],
    )
    return batch.quadrants()[0]


def _gradient(value: Tensor, leaves: Parameters) -> Parameters:
    parts = torch.autograd.grad(value, list(leaves.values()), retain_graph=True, materialize_grads=True)
    return dict(zip(leaves, parts, strict=True))
