"""Mean entropy as trainers log it: over the contexts that the policy itself visits, by exact enumeration.

An update changes entropy in the contexts that were visited, and it changes which contexts are visited. For a policy
over finitely many sequences both parts are sums over its contexts. Conventions: one row of logits per context, nats,
float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from entropy_theory.errors import invalid
from entropy_theory.theory import categorical as _categorical
from entropy_theory.theory import discriminant as _first
from entropy_theory.theory._policy import FloatArray, as_direction, as_logits

END = -1
"""In a `SequenceTree`: the sequence ends here."""

Mean = Literal["sum", "token", "sequence"]
"""E[Σ h]; E[Σ h]/E[L], what trainers log; E[Σ h/L]."""


@dataclass(frozen=True)
class SequenceTree:
    """Which context follows which token, for a policy over finitely many sequences.

    Attributes:
        following: Shape (C, V): the context after each token in each context, or `END`. Context 0 is the first; every
            other one follows exactly one token of an earlier context.

    Raises:
        ValueError: If that is not so.

    Example:
        >>> tree = SequenceTree(np.array([[1, 2], [END, END], [END, END]]))  # two tokens, then two tokens
        >>> tree.depth
        array([0, 1, 1])
    """

    following: NDArray[np.int64]

    def __post_init__(self) -> None:
        table = self.following
        if table.ndim != 2 or table.dtype.kind not in "iu":
            raise invalid("following", "integers of shape (C, V)", f"dtype {table.dtype}, shape {table.shape}")
        if sorted(table[table != END]) != list(range(1, len(table))):
            raise invalid("following", "each context but the first exactly once", sorted(table[table != END]))
        if (np.where(table == END, len(table), table) <= np.arange(len(table))[:, np.newaxis]).any():
            raise invalid("following", "contexts that come after their own", "an earlier one")

    @property
    def depth(self) -> NDArray[np.int64]:
        """Number of tokens before each context. Shape (C,)."""
        depth = np.zeros(len(self.following), dtype=np.int64)
        for context, row in enumerate(self.following):
            depth[row[row != END]] = depth[context] + 1
        return depth


@dataclass(frozen=True)
class _Values:
    """Per context, for one way of taking the mean: what the gradient needs.

    Attributes:
        reach: Probability of visiting it.
        worth: What each token is worth: the entropy to come, or Σ h/L in the end. Shape (C, V).
        weight: What a nat of the context's own entropy counts for once it is visited.
        mean: The mean itself.
        scale: What both parts are multiplied by, 1/E[L] or 1.
    """

    reach: FloatArray
    worth: FloatArray
    weight: FloatArray
    mean: float
    scale: float


def on_policy_entropy(tree: SequenceTree, logits: ArrayLike, mean: Mean = "token") -> float:
    """Mean entropy over the contexts that the policy visits.

    Part F of the theory notes.

    Formula: M = E[Σ_t h_t]/E[L], with h_t the entropy of the policy in context x_t and L the length ("token"); E[Σ h]
    ("sum"); E[Σ h/L] ("sequence").

    Symbols: the contexts are those of `tree`, each with a row of `logits`; M is the result.

    Shapes: logits (C, V) as the tree has. Nats, float64.

    Domain: logits finite or −inf, with a finite one in every row.

    Raises:
        ValueError: If the logits are outside this domain, or `mean` is not one of the three.

    Example:
        >>> tree = SequenceTree(np.array([[1, 2], [END, END], [END, END]]))
        >>> print(f"{on_policy_entropy(tree, [[0.0, 0.0], [0.0, 0.0], [0.0, -1e9]]):.4f}")  # ¾ log 2
        0.5199
    """
    return _values(tree, _rows(tree, logits), _kind(mean)).mean


def on_policy_gradient(tree: SequenceTree, logits: ArrayLike, mean: Mean = "token") -> tuple[FloatArray, FloatArray]:
    """Gradient of the on-policy mean entropy in every logit: on fixed contexts, and by the shift of contexts.

    Part F of the theory notes.

    Formula: ∇M = (1/E[L]) E[Σ_t ∇h_t + Σ_t ∇log π(y_t|x_t) (Σ_{s>t} (h_s − M) − b_t)], b_t any function of x_t. Without
    M and E[L] for "sum"; with Σ_s h_s/L in the bracket, and ∇h_t/L, for "sequence".

    Symbols: the first result is the part of ∇h_t, the second that of ∇log π; they add up to ∇M. Parameters θ that share
    logits have ∇_θ M = Jᵀ ∇M.

    Shapes: logits (C, V) as the tree has; (C, V) out, twice. Nats, float64.

    Domain: logits finite or −inf, with a finite one in every row.

    Raises:
        ValueError: If the logits are outside this domain, or `mean` is not one of the three.

    Example:
        >>> tree = SequenceTree(np.array([[1, 2], [END, END], [END, END]]))
        >>> fixed, shift = on_policy_gradient(tree, [[0.0, 0.0], [0.0, 0.0], [0.0, -1e9]])
        >>> print(np.round(shift[0], 4), fixed[0])  # the first token leads to entropy, and its own has no slope
        [ 0.0866 -0.0866] [0. 0.]
    """
    z = _rows(tree, logits)
    values = _values(tree, z, _kind(mean))
    probs = np.exp(_categorical.log_softmax(z))
    advantage = values.worth - (probs * values.worth).sum(axis=-1, keepdims=True)
    fixed = -values.scale * (values.reach * values.weight)[:, np.newaxis] * _first.discriminant(z)
    shift: FloatArray = values.scale * values.reach[:, np.newaxis] * probs * advantage
    return fixed + 0.0, shift


def total_discriminant(logits: ArrayLike, future: ArrayLike) -> FloatArray:
    """Minus the slope, in each logit of one context, of its entropy and all that follows.

    Part F of the theory notes: in E[Σ h] it takes the place of S_i.

    Formula: S_i^tot = p_i (log p_i − Q_i + H + E_p Q) = S_i − p_i (Q_i − E_p Q).

    Symbols: z is `logits`; Q_i = E[Σ_{s>t} h_s | i] is `future`, the entropy still to come after each token.

    Shapes: (..., V) and (..., V), leading shapes broadcast; (..., V) out. Nats, float64.

    Domain: V ≥ 2; logits finite or −inf, with a finite one in every row; future finite.

    Raises:
        ValueError: If an argument is not real or outside this domain, or if the shapes do not fit.

    Example:
        >>> print(np.round(total_discriminant([0.0, 0.0], [0.7, 0.1]), 2))  # the first token leads to more entropy
        [-0.15  0.15]
    """
    z = as_logits(logits)
    Q = as_direction("future", future, z.shape)
    probs = np.exp(_categorical.log_softmax(z))
    return _first.discriminant(z) - probs * (Q - (probs * Q).sum(axis=-1, keepdims=True))


def _kind(mean: str) -> Mean:
    if mean not in get_args(Mean):
        raise invalid("mean", f"one of {', '.join(get_args(Mean))}", repr(mean))
    return mean  # type: ignore[return-value]


def _rows(tree: SequenceTree, logits: ArrayLike) -> FloatArray:
    z = as_logits(logits)
    if z.shape != tree.following.shape:
        raise invalid("logits", f"shape {tree.following.shape} as the tree has", f"shape {z.shape}")
    return z


def _values(tree: SequenceTree, z: FloatArray, mean: Mean) -> _Values:
    probs = np.exp(_categorical.log_softmax(z))
    h = np.asarray(_categorical.entropy(z))
    contexts, depth = len(z), tree.depth
    reach, before = np.zeros(contexts), np.zeros(contexts)  # before: entropy of the contexts on the way, this one too
    reach[0], before[0] = 1.0, h[0]
    for context, row in enumerate(tree.following):
        inner = row != END
        reach[row[inner]] = reach[context] * probs[context, inner]
        before[row[inner]] = before[context] + h[row[inner]]
    length = float(reach.sum())  # E[L]: one token is drawn in every context
    total = float(reach @ h)

    # From the last contexts to the first: what is still to come, or for "sequence" what will have come in the end.
    worth, weight = np.zeros_like(probs), np.ones(contexts)
    ends = before / (depth + 1.0) if mean == "sequence" else np.zeros(contexts)
    for context in range(contexts - 1, -1, -1):
        for token, after in enumerate(tree.following[context]):
            if after == END:
                worth[context, token] = ends[context]
            elif mean == "sequence":
                worth[context, token] = probs[after] @ worth[after]
            else:
                own = h[after] - (total / length if mean == "token" else 0.0)
                worth[context, token] = own + probs[after] @ worth[after]
    if mean == "sequence":
        for context in range(contexts - 1, -1, -1):
            row = tree.following[context]
            shares = np.where(row == END, 1.0 / (depth[context] + 1.0), weight[np.maximum(row, 0)])
            weight[context] = probs[context] @ shares  # E[1/L] from here
        return _Values(reach, worth, weight, float(probs[0] @ worth[0]), 1.0)
    scale = 1.0 / length if mean == "token" else 1.0
    return _Values(reach, worth, weight, total * scale, scale)
