"""Where simulated policies start: drawn, computed, or saved from a model; and which of their tokens are right.

A policy depends on the seed and on its own place in the bank, never on how many others there are. So any rank and any
block can make its own part, which is what `first` is for.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from entropy_theory.dynamics.bank import policy_statistics
from entropy_theory.dynamics.draws import Draw, generator
from entropy_theory.errors import invalid

POLICIES_PER_DRAW = 64
"""Initial policies are drawn this many at a time, each block from a generator of its own."""

TENSOR = "logits"
"""The name of the tensor in a file of saved logits."""


def uniform_logits(policies: int, vocab_size: int) -> Float[Tensor, "B V"]:
    """Make policies that know nothing, p_i = 1/V: logits 0.

    Args:
        policies: B.
        vocab_size: V.

    Returns:
        Logits, float64, (B, V).

    Example:
        >>> uniform_logits(2, 3).tolist()
        [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    """
    return torch.zeros(policies, vocab_size, dtype=torch.float64)


def zipf_logits(policies: int, vocab_size: int, exponent: float) -> Float[Tensor, "B V"]:
    """Make policies that follow Zipf's law, p_i ∝ i^−s for the i-th token, i = 1 … V.

    All start alike; their right answers, drawn at random places, differ.

    Args:
        policies: B.
        vocab_size: V.
        exponent: s ≥ 0; 0 is uniform.

    Returns:
        Logits −s log i, float64, (B, V).

    Example:
        >>> zipf_logits(1, 4, 1.0).softmax(-1).mul(25).round().tolist()  # 1 : 1/2 : 1/3 : 1/4
        [[12.0, 6.0, 4.0, 3.0]]
    """
    ranks = torch.arange(1, vocab_size + 1, dtype=torch.float64)
    return (-exponent * ranks.log()).expand(policies, -1).clone()


def saved_shape(path: Path) -> tuple[int, int]:
    """Look up how many policies a file of saved logits holds, and of which size, without reading them.

    Args:
        path: A safetensors file with a floating-point tensor `logits`, (B, V) or (positions, V).

    Returns:
        B and V.

    Raises:
        ValueError: There is no such file or tensor, or it has another shape or dtype.
    """
    expected = f"a safetensors file with a floating-point tensor {TENSOR!r} of shape (policies, V), V >= 2"
    try:
        with safe_open(path, framework="pt") as file:
            if TENSOR not in file.keys():  # noqa: SIM118  not a mapping
                raise invalid("logits", expected, f"{path} with {', '.join(file.keys()) or 'nothing'}")
            part = file.get_slice(TENSOR)
            shape, dtype = tuple(part.get_shape()), part.get_dtype()
    except (SafetensorError, OSError) as error:
        raise invalid("logits", expected, f"{path} ({error})") from None
    if len(shape) != 2 or shape[0] < 1 or shape[1] < 2 or dtype not in ("F64", "F32", "F16", "BF16"):
        raise invalid("logits", expected, f"{path} with shape {shape}, {dtype}")
    return shape


def saved_logits(path: Path, policies: int, first: int = 0) -> Float[Tensor, "B V"]:
    """Read policies from a file of saved logits, such as those of a real model at some positions.

    Args:
        path: A file that `saved_shape` accepts.
        policies: How many to read.
        first: From which on.

    Returns:
        Logits, float64, (B, V).

    Raises:
        ValueError: The file is not one of saved logits, or a logit is not finite.

    Example:
        >>> import tempfile
        >>> from safetensors.torch import save_file
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_file({"logits": torch.eye(3)}, Path(folder) / "l.safetensors")
        ...     saved_logits(Path(folder) / "l.safetensors", 1, first=2).tolist()
        [[0.0, 0.0, 1.0]]
    """
    saved_shape(path)
    with safe_open(path, framework="pt") as file:
        logits: Tensor = file.get_slice(TENSOR)[first : first + policies].double()
    wrong = ~torch.isfinite(logits)
    if bool(wrong.any()):
        row, token = wrong.nonzero()[0].tolist()
        raise invalid("logits", "finite logits", f"{logits[row, token].item()} at ({first + row}, {token}) of {path}")
    return logits


def file_digest(path: Path) -> str:
    """Hash a file's content: the first 12 hexadecimal digits of SHA-256.

    Raises:
        ValueError: The file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:12]
    except OSError as error:
        raise invalid("logits", "a file that can be read", f"{path} ({error})") from None


def gaussian_logits(policies: int, vocab_size: int, scale: float, seed: int, first: int = 0) -> Float[Tensor, "B V"]:
    """Draw initial policies with independent normal logits, z_i ~ scale · N(0, 1).

    Args:
        policies: B.
        vocab_size: V.
        scale: The standard deviation of the logits.
        seed: The seed; a policy depends on it and on its own place in the bank, not on B.
        first: The place of the first policy in the bank.

    Returns:
        Logits, float64, (B, V).

    Example:
        >>> bool((gaussian_logits(3, 5, 1.0, 0) == gaussian_logits(100, 5, 1.0, 0)[:3]).all())
        True
    """
    logits = torch.empty(policies, vocab_size, dtype=torch.float64)
    for block, rows, taken in _draws(policies, first):
        source = generator(seed, Draw.LOGITS, block)
        logits[rows] = torch.randn(POLICIES_PER_DRAW, vocab_size, generator=source, dtype=torch.float64)[taken]
    return logits.mul_(scale)


def forking_logits(policies: int, vocab_size: int, seed: int, first: int = 0) -> Float[Tensor, "B V"]:
    """Draw initial policies as a trained language model has them: most certain, few that fork.

    Independent normal logits, each policy scaled until its entropy is the one drawn for it: half of the policies
    between 1e-4 and .009 nats (uniform in the logarithm), a fifth between .7 and ¾ log V (uniform), the rest in
    between (uniform in the logarithm). So about half are under .01 nats and the top fifth is above .67, as arXiv
    2506.01939 reports.

    Args:
        policies: B.
        vocab_size: V ≥ 4.
        seed: The seed; a policy depends on it and on its own place in the bank, not on B.
        first: The place of the first policy in the bank.

    Returns:
        Logits, float64, (B, V); entropies are met to about 1e-9 relative.

    Raises:
        ValueError: V < 4: ¾ log V is no more than .7.

    Example:
        >>> H = policy_statistics(forking_logits(1000, 50, 0)).entropy
        >>> round((H < 0.01).double().mean().item(), 1), round((H > 0.67).double().mean().item(), 1)
        (0.5, 0.2)
    """
    if vocab_size < 4:
        raise invalid("vocab_size", "at least 4 for policies that fork", vocab_size)
    z = gaussian_logits(policies, vocab_size, 1.0, seed, first)
    drawn = torch.empty(policies, 2, dtype=torch.float64)
    for block, rows, taken in _draws(policies, first):
        source = generator(seed, Draw.FORKING, block)
        drawn[rows] = torch.rand(POLICIES_PER_DRAW, 2, generator=source, dtype=torch.float64)[taken]
    kind, place = drawn.unbind(dim=1)

    def between(low: float, high: float) -> Tensor:
        return math.log(low) + place * (math.log(high) - math.log(low))

    certain, middling = between(1e-4, 0.009).exp(), between(0.011, 0.66).exp()
    forking = 0.7 + place * (0.75 * math.log(vocab_size) - 0.7)
    entropy = torch.where(kind < 0.5, certain, torch.where(kind < 0.8, middling, forking))
    low, high = torch.full_like(entropy, -20.0), torch.full_like(entropy, 40.0)  # of the logarithm of the scale
    for _ in range(60):
        middle = (low + high) / 2
        more = policy_statistics(z * middle.exp().unsqueeze(-1)).entropy > entropy
        low, high = torch.where(more, middle, low), torch.where(more, high, middle)
    return z * ((low + high) / 2).exp().unsqueeze(-1)


def correct_tokens(policies: int, vocab_size: int, share: float, seed: int, first: int = 0) -> Bool[Tensor, "B V"]:
    """Draw which tokens are right: the same number for every policy, at random places.

    Args:
        policies: B.
        vocab_size: V.
        share: The share of the vocabulary that is right; at least one token is, and at least one is not.
        seed: The seed.
        first: The place of the first policy in the bank.

    Returns:
        True where the reward is 1, (B, V).

    Example:
        >>> correct_tokens(2, 10, 0.3, 0).sum(dim=-1).tolist()
        [3, 3]
    """
    number = min(max(1, round(share * vocab_size)), vocab_size - 1)
    right = torch.zeros(policies, vocab_size, dtype=torch.bool)
    for block, rows, taken in _draws(policies, first):
        source = generator(seed, Draw.CORRECT, block)
        keys = torch.rand(POLICIES_PER_DRAW, vocab_size, generator=source, dtype=torch.float64)[taken]
        right[rows] = torch.zeros_like(right[rows]).scatter_(-1, keys.topk(number, dim=-1).indices, True)
    return right


def _draws(policies: int, first: int) -> Iterator[tuple[int, slice, slice]]:
    """Go through the blocks of draws that policies first … first + B − 1 come from: block, its rows here and in it."""
    end = first + policies
    for block in range(first // POLICIES_PER_DRAW, -(-end // POLICIES_PER_DRAW)):
        start = block * POLICIES_PER_DRAW
        low, high = max(first, start), min(end, start + POLICIES_PER_DRAW)
        yield block, slice(low - first, high - first), slice(low - start, high - start)
