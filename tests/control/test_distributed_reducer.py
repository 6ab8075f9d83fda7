"""Two processes under gloo against one that holds all tokens: the same masks, numbers and loss.

One spawn serves all checks: starting processes is what costs time.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from control_batches import EVERY_METHOD, map_tokens, random_batch

from entropy_theory.control import DistributedReducer, TokenBatch, aggregate, rule
from entropy_theory.control import reducers as r
from entropy_theory.control.random import uniform_keys
from entropy_theory.ranks import leave_ranks

# rows of rank 0; rank 1 holds the rest. 0 and 12: a rank without rows; 1: rank 0 has a row without tokens as well
SPLITS = (0, 2, 5, 12)
SPECS = (
    "none",
    "clip-b(mu=0.5)",
    "clip-v(mu=0.2, max_fraction=0.05)",
    "clip-v(mu=0.2, max_fraction=0.05, side='both', advantages='all')",
    "clip-b(mu=0.5, denominator='valid')|clip-v(statistics='kept', mu=0.5)|clip-higher",
    "random-mask(fraction=0.3)",
    "random-mask(match='clip-b(mu=0.5)|ppo-clip')",
    *EVERY_METHOD,
)
MODES = ("token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm")


def part(batch: TokenBatch, rank: int, split: int) -> TokenBatch:
    rows = slice(0, split) if rank == 0 else slice(split, None)
    return map_tokens(batch, lambda value: value[rows], lambda value: value[rows])


def whole_batch() -> TokenBatch:
    batch = random_batch(0, rows=12)
    # ties in the score that Clip_V ranks by, across the ranks
    tied = batch.centered_discriminant.clone()
    tied[3:9, 0] = -0.9
    return TokenBatch(**{**vars(batch), "centered_discriminant": tied, "advantages": -batch.advantages.abs()})


def measure(batch: TokenBatch, reducer: r.Reducer) -> dict[str, object]:
    """Everything that must agree: per-token tensors of this rank, and global numbers."""
    found: dict[str, object] = {}
    mask, x = batch.completion_mask, batch.log_probs
    for spec in SPECS:
        out = rule(spec).apply(batch, reducer, generator=torch.Generator().manual_seed(3))
        keep = mask if out.keep_mask is None else out.keep_mask
        found[spec] = (out.coefficients, keep, out.counted_mask, int(out.denominator), out.metrics, float(out.loss()))
    for mode in MODES:
        found[mode] = float(aggregate(x, mask, mode, reducer=reducer))
    found["count"] = r.masked_count(mask, reducer)
    found["moments"] = r.masked_moments(x, mask, reducer)
    found["extremes"] = r.masked_min_max(x, mask, reducer)
    found["quantiles"] = [r.masked_quantile(x, mask, q, reducer) for q in (0.0, 0.2, 0.5, 0.97, 1.0)]
    found["top"] = [r.masked_top_k(x.round(decimals=1), mask, k, reducer) for k in (0, 1, 7, 30, 10_000)]
    found["keys"] = uniform_keys(mask, torch.Generator().manual_seed(4), reducer)
    found["bools"] = reducer.gather(mask.flatten())
    found["nothing"] = reducer.gather(x.new_zeros(0)).numel()
    return found


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    reducer = DistributedReducer()
    found: dict[object, object] = {"place": (reducer.rank, reducer.world_size)}
    for split in SPLITS:
        found[split] = measure(part(whole_batch(), rank, split), reducer)
    empty = part(whole_batch(), rank, 0)
    empty = TokenBatch(**{**vars(empty), "completion_mask": torch.zeros_like(empty.completion_mask)})
    for name, call in {
        "no tokens": lambda: rule("none").apply(empty, reducer),
        "seeds": lambda: uniform_keys(whole_batch().completion_mask, torch.Generator().manual_seed(rank), reducer),
    }.items():
        try:
            call()
        except ValueError as error:
            found[name] = str(error)
    torch.save(found, f"{folder}/{rank}.pt")
    leave_ranks()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    folder: Path = tmp_path_factory.mktemp("ranks")
    mp.spawn(work, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.fixture(scope="module")
def alone() -> dict[str, object]:
    return measure(whole_batch(), r.LocalReducer())


def test_ranks_know_their_place(ranks: list[dict]) -> None:
    assert [found["place"] for found in ranks] == [(0, 2), (1, 2)]


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("spec", SPECS)
def test_rules_are_global(ranks: list[dict], alone: dict, split: int, spec: str) -> None:
    parts = [found[split][spec] for found in ranks]
    # weights made of global sums agree to the rounding of these; decisions agree exactly
    torch.testing.assert_close(torch.cat([p[0] for p in parts]), alone[spec][0], rtol=1e-12, atol=1e-15)
    for position in (1, 2):
        assert torch.equal(torch.cat([p[position] for p in parts]), alone[spec][position])
    for p in parts:
        assert p[3] == alone[spec][3]
        assert p[4] == pytest.approx(alone[spec][4], rel=1e-12, abs=1e-14)
    assert parts[0][5] + parts[1][5] == pytest.approx(alone[spec][5], rel=1e-12)


@pytest.mark.parametrize("split", SPLITS)
def test_reductions_are_global(ranks: list[dict], alone: dict, split: int) -> None:
    a, b = (found[split] for found in ranks)
    for mode in MODES:
        assert a[mode] + b[mode] == pytest.approx(alone[mode], rel=1e-12)
    for name in ("count", "extremes", "quantiles", "nothing"):
        assert a[name] == b[name] == alone[name]
    assert a["moments"] == b["moments"] == pytest.approx(alone["moments"], rel=1e-13)
    for mine, other, reference in zip(a["top"], b["top"], alone["top"], strict=True):
        assert torch.equal(torch.cat([mine, other]), reference)
    assert torch.equal(torch.cat([a["keys"], b["keys"]]), alone["keys"])
    assert a["bools"].dtype == torch.bool
    assert torch.equal(a["bools"], alone["bools"])


def test_what_is_wrong_everywhere_is_refused_on_every_rank(ranks: list[dict]) -> None:
    for found in ranks:
        assert found["no tokens"].startswith("completion_mask: expected at least one valid token over all ranks")
        assert found["seeds"].startswith("generator: expected the same seed and state on every rank")
