"""The influence of recorded tokens on mean entropy: under a memory bound, and in parts that survive a kill.

D_t = ⟨∇H̄, ∇log p_t⟩ with H̄ the mean entropy of the contexts of all n recorded tokens (part E of the theory notes). A
first pass adds up ∇H̄ batch by batch, a second one takes the tangents of each batch's logits along it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from entropy_theory import records
from entropy_theory.errors import invalid
from entropy_theory.influence import StepBatch
from entropy_theory.influence.model_view import ModelView, Parameters, full_precision, inner_product, observed
from entropy_theory.influence.tangents import NoForwardModeError, Tangents, tangents
from entropy_theory.inspection import scoring
from entropy_theory.inspection.tokens import Tokenised

if TYPE_CHECKING:
    from entropy_theory.inspection.scoring import Policy, Progress

SAVE_SECONDS = 60.0
"""How long the first pass works between two writings of the gradient, which is as large as the model."""

AGREEMENT = 0.01
"""How far the sum of a batch's influence may be from the same by reverse mode, over the sum of its sizes."""

_DIRECTION = "direction.safetensors"


@dataclass(frozen=True, eq=False)
class MeasuredInfluence:
    """The influence of recorded tokens.

    Attributes:
        values: D of all completion tokens, sequence after sequence, float32, nats per unit of (η/n) g.
        method: How the tangents came about, "jvp" or "difference".
        check: Distance of the sum of one batch's D from the same by reverse mode, over the sum of their sizes.
        error: Estimated root mean square error of D; 0 for "jvp".
        weights: How many numbers the gradient of H̄ has.
    """

    values: np.ndarray
    method: str
    check: float
    error: float
    weights: int


def step_batch(
    sequences: Sequence[Tokenised], temperature: float = 1.0, device: torch.device | str = "cpu"
) -> StepBatch:
    """Lay sequences out as the tokens of a step, padded on the right only, with a coefficient of 1 for every token.

    Padding on the left would shift the positions of a model that counts padding. So every row's prompt is as long as
    the shortest one, and the rest of a longer prompt counts as completion tokens that are not trained on.

    Args:
        sequences: Prompts and completions in tokens, at least one with a completion.
        temperature: T of the policy π_T.
        device: Where the tensors go.

    Example:
        >>> batch = step_batch([Tokenised((1,), (2, 3), ("a", "b")), Tokenised((4, 5), (6,), ("c",))])
        >>> batch.prompt_ids.tolist(), batch.completion_ids.tolist(), batch.valid.int().tolist()
        ([[1], [4]], [[2, 3], [5, 6]], [[1, 1], [0, 1]])
    """
    start = min(len(s.prompt_ids) for s in sequences)
    texts = [s.prompt_ids + s.ids for s in sequences]
    ids = torch.zeros(len(texts), max(map(len, texts)), dtype=torch.long)
    inside, trained = torch.zeros_like(ids), torch.zeros_like(ids)
    for row, (sequence, text) in enumerate(zip(sequences, texts, strict=True)):
        ids[row, : len(text)] = torch.tensor(text)
        inside[row, : len(text)] = 1
        trained[row, len(sequence.prompt_ids) : len(text)] = 1
    ids, inside, trained = (values.to(device) for values in (ids, inside, trained))
    return StepBatch(
        prompt_ids=ids[:, :start],
        prompt_mask=inside[:, :start],
        completion_ids=ids[:, start:],
        completion_mask=inside[:, start:],
        advantages=torch.ones(len(texts), device=device),
        group_ids=torch.arange(len(texts), device=device),
        temperature=temperature,
        trained_mask=trained[:, start:],
    )


def measure_influence(
    policy: Policy,
    sequences: Sequence[Tokenised],
    folder: Path,
    *,
    temperature: float = 1.0,
    batch_tokens: int = 8192,
    progress: Progress | None = None,
) -> MeasuredInfluence:
    """Compute the influence of every completion token on the mean entropy of all completions' contexts.

    All parameters of the model count as trained. A run that resumes reads from the folder what earlier batches have
    given; the gradient of the first pass stays there until the second pass has ended.

    Args:
        policy: The model.
        sequences: Prompts and completions in tokens, with the end tokens decided.
        folder: Where to keep the parts; one subfolder for each combination of model, tokens and options.
        temperature: T > 0 of the policy π_T whose entropy is meant.
        batch_tokens: Tokens in a batch, padding included; a longer sequence is a batch by itself.
        progress: Called with (tokens done, tokens in all, words).

    Raises:
        ValueError: The model gives numbers that are not finite, forward and reverse mode disagree, or a kept part is
            not what was written.
    """
    batches = scoring.batches_of(sequences, batch_tokens)
    described = scoring.description(policy, sequences, temperature, batch_tokens) | {"influence": "same contexts"}
    parts = folder / records.configuration_hash(described)
    records.open_run(parts, described)
    starts = np.cumsum([0, *(len(s.ids) for s in sequences)])
    paths = [parts / f"part-{number:05d}.safetensors" for number in range(len(batches))]
    work = _Work(policy, [[sequences[row] for row in rows] for rows in batches], temperature, progress)
    if not all(path.exists() for path in paths):
        direction = work.direction(parts / _DIRECTION)
        for number, path in enumerate(paths):
            if not path.exists():
                records.save_arrays(path, *work.part(number, direction))
            work.report(number, "tokens with their influence")
    values = np.empty(int(starts[-1]), dtype=np.float32)
    notes: list[dict[str, Any]] = []
    for path, rows in zip(paths, batches, strict=True):
        places = np.concatenate([np.arange(starts[row], starts[row + 1]) for row in rows])
        arrays, note = records.read_arrays(path, "scores")
        if arrays.keys() != {"influence"} or len(arrays["influence"]) != len(places):
            raise invalid("scores", f"the influence of {len(places)} tokens", path)
        values[places] = arrays["influence"]
        notes.append(note)
    (parts / _DIRECTION).unlink(missing_ok=True)
    return MeasuredInfluence(
        values=values,
        method="jvp" if all(note["method"] == "jvp" for note in notes) else "difference",
        check=float(notes[0]["check"]),
        error=max(float(note["error"]) for note in notes),
        weights=sum(p.numel() for p in policy.model.parameters()),
    )


class _Work:
    """The two passes over the batches of a model."""

    def __init__(
        self, policy: Policy, batches: list[list[Tokenised]], temperature: float, progress: Progress | None
    ) -> None:
        self._model, self._batches, self._temperature = policy.model, batches, temperature
        # scoring holds the parameters without gradients; here all of them train
        self._parameters = dict(policy.model.named_parameters())
        self._counts = [sum(len(row.ids) for row in rows) for rows in batches]
        self._progress, self._method = progress, "jvp"

    def report(self, number: int, words: str) -> None:
        """Say that a batch is done."""
        if self._progress is not None:
            self._progress(sum(self._counts[: number + 1]), sum(self._counts), words)

    def _view(self, number: int) -> ModelView:
        batch = step_batch(self._batches[number], self._temperature, self._model.device)
        return ModelView(self._model, batch, self._parameters)

    def direction(self, path: Path) -> Parameters:
        """∇H̄ over all batches, from what was written of it on."""
        done, total = (
            0,
            {
                name: torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32))
                for name, p in self._parameters.items()
            },
        )
        if path.exists():
            arrays, done = records.read_arrays(path, "scores")
            shapes = {name: value.shape for name, value in total.items()}
            if {name: value.shape for name, value in arrays.items()} != shapes or not isinstance(done, int):
                raise invalid("scores", "the gradient of this model's mean entropy", path)
            total = {name: torch.from_numpy(arrays[name]).to(value) for name, value in total.items()}
        written = time.monotonic()
        for number in range(done, len(self._batches)):
            with observed(self._model):
                view = self._view(number)
                share = torch.full(view.mask.shape, 1 / sum(self._counts), dtype=view.dtype, device=view.mask.device)
                with full_precision(view.dtype):
                    part, _ = view.gradient(entropy=share)
            for name, value in part.items():
                total[name] += value
            last = number + 1 == len(self._batches)
            if last or time.monotonic() - written >= SAVE_SECONDS:
                records.save_arrays(path, {name: value.cpu().numpy() for name, value in total.items()}, number + 1)
                written = time.monotonic()
            self.report(number, "tokens in the gradient of mean entropy")
        return total

    def part(self, number: int, direction: Parameters) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """The influence of a batch's tokens; of the first batch also checked by reverse mode."""
        with observed(self._model, forward_mode=True):
            view = self._view(number)
            with full_precision(view.dtype):
                measured = self._tangents(view, direction)
                values = measured.influence[view.mask]
                check = 0.0
                if number == 0:
                    ones = torch.ones_like(measured.influence)
                    reverse = inner_product(direction, view.gradient(log_probs=ones)[0])
                    sizes = float(values.double().abs().sum())
                    check = abs(float(values.double().sum()) - reverse) / sizes if sizes else abs(reverse)
        if not check <= AGREEMENT:
            expected = f"derivatives by {self._method} and by reverse mode that agree to {AGREEMENT:g}"
            raise invalid("model", expected, f"a distance of {check:.2g}")
        note = {"method": self._method, "check": check, "error": measured.error}
        return {"influence": values.float().cpu().numpy()}, note

    def _tangents(self, view: ModelView, direction: Parameters) -> Tangents:
        rows = view.mask.any(-1).nonzero()[:, 0]
        if self._method == "jvp":
            try:
                return tangents(view, [(rows, direction)], "jvp")
            except NoForwardModeError:
                self._method = "difference"
        return tangents(view, [(rows, direction)], "difference")


def influence_agreement(tabular: np.ndarray, influence: np.ndarray) -> dict[str, float | None]:
    """Compare what the tabular theory says of tokens with their influence.

    Args:
        tabular: −S_c/n or −g S_c/n, (n,).
        influence: D or g D, (n,).

    Returns:
        ``pearson`` and ``spearman``, the correlations, and ``sign``, the share of tokens with the same sign among those
        that have two; None where there is nothing to compare.

    Example:
        >>> influence_agreement(np.array([1.0, -1.0, 2.0]), np.array([2.0, -2.0, -0.5]))["sign"]
        0.6666666666666666
    """
    from scipy import stats

    x, y = np.asarray(tabular, dtype=np.float64), np.asarray(influence, dtype=np.float64)
    signed = (x != 0) & (y != 0)
    estimates = {"pearson": math.nan, "spearman": math.nan, "sign": math.nan}
    if len(x) > 1 and np.ptp(x) > 0 and np.ptp(y) > 0:
        estimates["pearson"] = float(stats.pearsonr(x, y).statistic)
        estimates["spearman"] = float(stats.spearmanr(x, y).statistic)
    if signed.any():
        estimates["sign"] = float((np.sign(x) == np.sign(y))[signed].mean())
    return {name: value if math.isfinite(value) else None for name, value in estimates.items()}
