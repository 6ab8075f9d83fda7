"""A bank of independent softmax policies: their statistics, samples from them, and exact changes of their entropy.

A bank is a tensor of logits (B, V), one policy per row. Everything here is row by row, without a loop over policies,
in float64 whatever the logits are stored in, and gives the same bits however the rows are split into blocks.

`vocab.token_statistics` gives every *token* its statistics and reads a row of logits for each. Here the tokens of a
group share their policy, and the exact change of entropy needs the whole of p and log p besides. So the policy is
evaluated once, by `policy_statistics`, and all its tokens are looked up; the tests hold the two against each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields

import torch
from jaxtyping import Float, Int
from torch import Tensor

from entropy_theory.errors import invalid

FAR = 1.0
"""A move of the logits beyond this, relative to the likeliest token, rebuilds the policy: entropies are subtracted."""

SMALL = 1 << 18
"""Blocks of at most so many logits are computed on one thread."""


@contextmanager
def threads_for(elements: int) -> Iterator[None]:
    """Compute small blocks on one thread; the number of threads is put back afterwards.

    To hand operations of some microseconds to several threads gains little, and on a busy machine, where they wait for
    each other, costs an order of magnitude.

    Args:
        elements: Logits in a block.

    Example:
        >>> with threads_for(100):
        ...     torch.get_num_threads()
        1
    """
    before = torch.get_num_threads()
    if elements <= SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def keep_freed_memory() -> None:
    """Let glibc keep arrays of up to 32 MB that this process frees, rather than return their pages to the system.

    A step makes and frees a dozen arrays of a megabyte, and zeroed pages cost as much as what is computed in them. The
    allocator raises its limit to the size of the largest array that was freed (mallopt(3), M_MMAP_THRESHOLD); one that
    is never written to costs nothing. Other allocators take no notice.

    Example:
        >>> keep_freed_memory()
    """
    torch.empty((1 << 25) - (1 << 16), dtype=torch.uint8, device="cpu")


@dataclass(frozen=True, eq=False)
class TokenScores:
    """What the theory knows about sampled tokens, looked up from their policies.

    Attributes:
        log_probs: log p_k, (B, G), nats.
        discriminant: S_k = p_k (H + log p_k), (B, G).
        centered_discriminant: S_k − N, (B, G).
    """

    log_probs: Float[Tensor, "B G"]
    discriminant: Float[Tensor, "B G"]
    centered_discriminant: Float[Tensor, "B G"]

    @classmethod
    def cat(cls, parts: Sequence[TokenScores]) -> TokenScores:
        """Join blocks of policies."""
        if len(parts) == 1:
            return parts[0]
        return cls(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(cls)))


@dataclass(frozen=True, eq=False)
class PolicyStatistics:
    """Everything about B policies that sampling, prediction and exact change share.

    p = softmax(z), u_i = z_i − E_p[z] = H + log p_i, S_i = p_i u_i, N = Σ p_i S_i.

    Attributes:
        probs: p, (B, V).
        excess: u, (B, V): the logit above the policy's mean logit.
        top: The likeliest token (of several, one), (B, 1).
        entropy: H, (B,), nats.
        baseline: N, (B,).
        tail: 1 − p_top, with its digits, (B, 1).
        tail_baseline: The part of N from all tokens but the likeliest, (B, 1).

    All numbers are float64.

    Example:
        >>> bank = policy_statistics(torch.tensor([[2.0, 1.0, 0.0]]))
        >>> bank.entropy.numpy().round(4).tolist(), bank.baseline.numpy().round(4).tolist()
        ([0.8324], [0.1408])
    """

    probs: Float[Tensor, "B V"]
    excess: Float[Tensor, "B V"]
    top: Int[Tensor, "B 1"]
    entropy: Float[Tensor, " B"]
    baseline: Float[Tensor, " B"]
    tail: Float[Tensor, "B 1"]
    tail_baseline: Float[Tensor, "B 1"]

    def at(self, tokens: Int[Tensor, "B G"]) -> TokenScores:
        """Look up the scores of tokens.

        Theorems 3.2 and 3.3 of arXiv 2602.03392; section C of the theory notes for the likeliest token, where S and N
        agree to all but their last digits and S_c = S (1 − p_top) − (the rest of N) keeps them.

        Args:
            tokens: k, ids in [0, V), (B, G).

        Example:
            >>> bank = policy_statistics(torch.tensor([[2.0, 1.0, 0.0]]))
            >>> bank.at(torch.tensor([[0, 2]])).centered_discriminant.numpy().round(4).tolist()
            [[0.1418, -0.2826]]
        """
        excess = self.excess.gather(-1, tokens)
        discriminant = self.probs.gather(-1, tokens) * excess
        centered = torch.where(
            tokens == self.top,
            discriminant * self.tail - self.tail_baseline,
            discriminant - self.baseline.unsqueeze(-1),
        )
        return TokenScores(excess - self.entropy.unsqueeze(-1), discriminant, centered)

    def discriminants(self) -> Float[Tensor, "B V"]:
        """S_i of every token, (B, V); Σ S_i = 0 (section B.1 of the theory notes)."""
        return self.probs * self.excess

    def sum_squared_discriminant(self) -> Float[Tensor, " B"]:
        """Σ_i S_i² of each policy, (B,): what an entropy bonus achieves to first order (section B.11 of the notes)."""
        return _row_sums(self.discriminants().square_())

    def discriminant_variance(self) -> Float[Tensor, " B"]:
        """Var_{k~p} S_k = Σ p_i (S_i − N)² of each policy, (B,)."""
        deviation = self.discriminants().sub_(self.baseline.unsqueeze(-1))
        return _row_sums(deviation.square_().mul_(self.probs))


@torch.no_grad()
def policy_statistics(logits: Float[Tensor, "B V"]) -> PolicyStatistics:
    """Evaluate a bank of policies once, for everything that follows.

    Section C of the theory notes: with d = z − max z, the likeliest token left out of the sums and put back exactly,
    so that H, N and 1 − p_top keep their digits on nearly deterministic policies.

    Formula: p_i = e^{d_i}/Z, u_i = d_i − E_p[d], H = log Z − E_p[d], N = Σ p_i² u_i.

    Args:
        logits: z, (B, V), V ≥ 2, any floating dtype, finite (not checked here: it would cost a read).

    Returns:
        The statistics, float64, detached.

    Example:
        >>> policy_statistics(torch.zeros(1, 4)).entropy.item() == torch.tensor(4.0).double().log().item()
        True
    """
    top_logit, top = logits.max(dim=-1, keepdim=True)
    d = logits.double() - top_logit.double()
    probs = d.exp().scatter_(-1, top, 0.0)
    rest = _row_sums(probs).unsqueeze(-1)  # Z without the likeliest token's 1
    total = 1.0 + rest
    mean = _row_sums(probs * d).unsqueeze(-1) / total  # E_p[d] ≤ 0
    probs /= total
    excess = d.sub_(mean)
    tail_baseline = _row_sums((probs * excess).mul_(probs)).unsqueeze(-1)
    p_top = total.reciprocal()
    probs.scatter_(-1, top, p_top)
    baseline = tail_baseline - p_top.square() * mean
    entropy = torch.log1p(rest) - mean
    return PolicyStatistics(probs, excess, top, entropy.squeeze(-1), baseline.squeeze(-1), rest / total, tail_baseline)


@torch.no_grad()
def entropy_change(policy: PolicyStatistics, move: Float[Tensor, "B V"]) -> Float[Tensor, " B"]:
    """Compute the exact change of entropy when the logits move, with its digits also for tiny moves.

    Section B.3 of the theory notes, H(q) − H(p) = −Σ (q_i − p_i) log p_i − KL(q‖p), q = softmax(z + δ).

    Formula: with E = e^δ − 1, c = Σ p E and m = Σ p δ,

        ΔH = −[Σ p E (u + δ) − c m] / (1 + c) + [log(1 + c) − m],

    which is the identity with KL(q‖p) = Σ (q − p)(δ − log(1 + c)) − KL(p‖q) and KL(p‖q) = log(1 + c) − m written
    out. No entropies are subtracted: round-off is about 1e-16 · E_p[|δ| (1 + |u|)], below the first order by sixteen
    digits at any step size. A shift of all logits changes nothing, so δ is measured from the likeliest token's; on
    nearly deterministic policies only small probabilities then enter. Where |δ| so measured exceeds 1 the change is
    as large as the entropies themselves and they are subtracted.

    Args:
        policy: The statistics of p.
        move: δ, float64, finite, (B, V).

    Returns:
        ΔH, nats, float64, (B,).

    Example:
        >>> bank = policy_statistics(torch.tensor([[1.0, 0.0, -1.0]]).double())
        >>> print(f"{entropy_change(bank, torch.tensor([[1e-8, 0.0, 0.0]]).double()).item():.6e}")
        -2.825875e-09
    """
    return _relative_change(policy, move - move.gather(-1, policy.top))[0]


@torch.no_grad()
def entropy_orders(
    policy: PolicyStatistics, move: Float[Tensor, "B V"]
) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"], Float[Tensor, " B"]]:
    """Compute the exact change of entropy when the logits move, and the first two orders of it.

    Sections B.1, B.3 and B.6 of the theory notes. Both orders are those of the very move that is given, whatever made
    it: a gradient step, a natural one, Adam.

    Formula: with δ measured from the likeliest token's, which changes nothing, m = Σ p δ and f = Σ p δ u,

        first = −Σ S_i δ_i = −f,
        second = ½ H''(δ) = −½ Σ p (δ − m)² (1 + u) = −½ [Σ p δ² (1 + u) − m² − 2 m f],

    the last because Σ p u = 0. On nearly deterministic policies Σ p δ² is as small as m and m² far below it; at worst,
    when all tokens but the likeliest move alike, the difference loses a factor 1/p_top of its 1e-16.

    Args:
        policy: The statistics of p.
        move: δ, float64, finite, (B, V).

    Returns:
        ΔH as `entropy_change` computes it, its first-order part and its second-order part, nats, float64, (B,) each.

    Example:
        >>> bank = policy_statistics(torch.tensor([[1.0, 0.0, -1.0]]).double())
        >>> exact, first, second = entropy_orders(bank, torch.tensor([[0.01, 0.0, 0.0]]).double())
        >>> print(f"{(exact - first).item():.2e}, {(exact - first - second).item():.0e}")
        -6.42e-06, 4e-08
    """
    relative = move - move.gather(-1, policy.top)
    change, mean, weighted = _relative_change(policy, relative)
    slope = _row_sums(weighted * policy.excess)
    square = weighted.mul_(relative)
    curvature = _row_sums(square) + _row_sums(square.mul_(policy.excess)) - mean.square() - 2.0 * mean * slope
    return change, -slope, -0.5 * curvature


def _relative_change(
    policy: PolicyStatistics, move: Float[Tensor, "B V"]
) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"], Float[Tensor, "B V"]]:
    """ΔH, Σ p δ and p δ for a move measured from the likeliest token's."""
    weighted = policy.probs * move
    mean = _row_sums(weighted)
    grown = torch.expm1(move).mul_(policy.probs)
    growth = _row_sums(grown)
    linear = _row_sums(grown.mul_(policy.excess + move))
    change = torch.log1p(growth) - mean - (linear - growth * mean) / (1.0 + growth)
    far = move.abs().amax(dim=-1) > FAR
    if bool(far.any()):
        # z up to a shift is u, which loses nothing: u is z minus a constant of the row.
        moved = policy_statistics(policy.excess[far] + move[far])
        change[far] = moved.entropy - policy.entropy[far]
    return change, mean, weighted


@torch.no_grad()
def sample_tokens(probs: Float[Tensor, "B V"], uniforms: Float[Tensor, "B G"]) -> Int[Tensor, "B G"]:
    """Sample from the very policies by inverting their cumulative distribution.

    Formula: k = the first token with Σ_{i≤k} p_i > u Σ_i p_i.

    Args:
        probs: p, non-negative, not necessarily summing to 1, float64, (B, V).
        uniforms: u in [0, 1), (B, G); they alone decide, so the caller controls every draw.

    Returns:
        Token ids, int64, (B, G). Exact up to the 53 bits of u; a token of probability 0 is never drawn.

    Example:
        >>> sample_tokens(torch.tensor([[0.5, 0.0, 0.5]]), torch.tensor([[0.0, 0.49, 0.5, 0.99]])).tolist()
        [[0, 0, 2, 2]]
    """
    cumulative = probs.cumsum(dim=-1)
    targets = uniforms * cumulative[:, -1:]
    # A binary search of all tokens in lockstep. torch.searchsorted mispredicts a branch at every halving, which costs
    # twice as much here. The answer lies in [tokens, tokens + left).
    tokens = torch.zeros(uniforms.shape, dtype=torch.int64, device=probs.device)
    left = probs.shape[-1]
    while left > 1:
        half = left // 2
        tokens += (cumulative.gather(-1, tokens + (half - 1)) <= targets) * half
        left -= half
    return tokens


def truncated(probs: Float[Tensor, "B V"], top_p: float) -> Float[Tensor, "B V"]:
    """Keep the smallest set of likeliest tokens whose probability reaches top_p; the others get 0.

    Sampling from the result is top-p sampling, which is *not* sampling from p (section B.13 of the theory notes).

    Args:
        probs: p, (B, V).
        top_p: In (0, 1].

    Returns:
        p on the kept tokens and 0 elsewhere, not renormalised, (B, V).

    Raises:
        ValueError: top_p outside (0, 1].

    Example:
        >>> truncated(torch.tensor([[0.5, 0.3, 0.2]]), 0.6).tolist() == torch.tensor([[0.5, 0.3, 0.0]]).tolist()
        True
    """
    if isinstance(top_p, bool) or not isinstance(top_p, int | float) or not 0.0 < top_p <= 1.0:
        raise invalid("top_p", "a number in (0, 1]", repr(top_p))
    ordered, order = probs.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(dim=-1) - ordered
    kept = torch.where(before < top_p, ordered, torch.zeros_like(ordered))
    return torch.zeros_like(probs).scatter_(-1, order, kept)


def _row_sums(values: Float[Tensor, "B V"]) -> Float[Tensor, " B"]:
    # A single long row would be summed in as many parts as there are threads, in another order than among others.
    if values.shape[0] == 1 and values.device.type == "cpu" and torch.get_num_threads() > 1:
        return values.repeat(2, 1).sum(dim=-1)[:1]
    return values.sum(dim=-1)
