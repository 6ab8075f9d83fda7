"""TokenBatch: what it refuses, what it carries, and that a file gives it back."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from control_batches import PER_TOKEN, random_batch
from safetensors.torch import save_file

from entropy_theory.control import TokenBatch, rule

NAN, INF = float("nan"), float("inf")


def minimal(rows: int = 2, width: int = 3, **changed: object) -> TokenBatch:
    x = torch.full((rows, width), -0.5)
    values = {"log_probs": x, "entropy": -x, "advantages": torch.ones(rows), "completion_mask": torch.ones(rows, width)}
    return TokenBatch(**{**values, **changed})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"log_probs": torch.zeros(3)}, r"log_probs: expected shape \(B, T\), received \(3,\)"),
        ({"entropy": torch.zeros(2, 4)}, r"entropy: expected shape \(2, 3\) as log_probs has, received \(2, 4\)"),
        ({"advantages": torch.zeros(3)}, r"advantages: expected shape \(2,\) or \(2, 3\) .* received \(3,\)"),
        ({"completion_mask": torch.ones(2, 2)}, r"completion_mask: expected shape \(2, 3\)"),
        ({"completion_mask": torch.full((2, 3), 2)}, "completion_mask: expected only the values 0 and 1, received 2"),
        ({"completion_mask": torch.full((2, 3), 0.5)}, "completion_mask: expected only the values 0 and 1, .* 0.5"),
        ({"completion_mask": torch.full((2, 3), NAN)}, "completion_mask: expected only the values 0 and 1, .* nan"),
        (
            {"completion_mask": torch.ones(2, 3) * 1j},
            "completion_mask: expected only the values 0 and 1, .*complex64",
        ),
        (
            {"log_probs": torch.full((2, 3), 0.01)},
            r"log_probs: expected log-probabilities <= 0 .* at position \(0, 0\)",
        ),
        ({"old_log_probs": torch.tensor([[-1, -1, 2.0], [0, 0, 0]])}, r"old_log_probs: .* received 2.0 at .*\(0, 2\)"),
        ({"rollout_log_probs": torch.full((2, 3), 0.5)}, "rollout_log_probs: expected log-probabilities <= 0"),
        ({"entropy": torch.full((2, 3), -0.5)}, r"entropy: expected entropies >= 0 .* received -0.5"),
        ({"old_entropy": torch.full((2, 3), -1e30)}, "old_entropy: expected entropies >= 0"),
        ({"group_ids": torch.zeros(2) * 1j}, "group_ids: expected an integer tensor, received torch.complex64"),
        ({"influence": torch.zeros(2)}, r"influence: expected shape \(2, 3\) as log_probs has, received \(2,\)"),
        ({"influence": torch.full((2, 3), INF)}, r"influence: .*finite.* received inf at position \(0, 0\)"),
        ({"rewards": torch.zeros(2, 3)}, r"rewards: expected shape \(2,\)"),
        ({"group_ids": torch.zeros(2)}, "group_ids: expected an integer tensor, received torch.float32"),
        ({"entropy": torch.zeros(2, 3, dtype=torch.int64)}, "entropy: expected a floating-point tensor"),
        ({"entropy": [[0.0]]}, "entropy: expected a torch tensor, received list"),
        (
            {"entropy": torch.tensor([[0, 0, 0], [0, NAN, 0.0]])},
            r"entropy: .*finite.* received nan at position \(1, 1\)",
        ),
        ({"log_probs": torch.tensor([[0, 0, -INF], [0, 0, 0.0]])}, r"log_probs: .* received -inf at position \(0, 2\)"),
        ({"advantages": torch.tensor([1.0, NAN])}, r"advantages: .*finite.* received nan at position \(1,\)"),
        ({"rewards": torch.tensor([1.0, INF])}, r"rewards: .*finite.* received inf at position \(1,\)"),
        (
            {"baseline": torch.zeros(2, 3, device="meta")},
            "baseline: expected device cpu as log_probs has, received meta",
        ),
    ],
)
def test_refusals_name_the_argument(changed: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        minimal(**changed)


@pytest.mark.parametrize("name", [n for n in PER_TOKEN if n != "advantages"])
def test_masked_positions_may_hold_anything_and_valid_ones_may_not(name: str) -> None:
    spoiled = torch.zeros(2, 3)
    spoiled[0, 2] = NAN
    minimal(**{name: spoiled, "completion_mask": torch.tensor([[1, 1, 0], [1, 1, 1]])})
    with pytest.raises(ValueError, match=name):
        minimal(**{name: spoiled})


def test_rounding_may_leave_the_range() -> None:
    minimal(log_probs=torch.full((2, 3), 5e-5), entropy=torch.full((2, 3), -5e-5))
    minimal(log_probs=torch.full((2, 3), 0.06, dtype=torch.bfloat16), rollout_log_probs=torch.full((2, 3), 0.06))


def test_a_rank_without_tokens_is_a_batch() -> None:
    nan = torch.full((2, 3), NAN)
    batch = TokenBatch(nan, nan, nan[:, 0], torch.zeros(2, 3), rewards=nan[:, 0])
    assert not batch.completion_mask.any()
    assert TokenBatch(nan[:0], nan[:0], nan[:0, 0], nan[:0]).log_probs.shape == (0, 3)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32, torch.uint8])
def test_mask_of_any_dtype_becomes_bool(dtype: torch.dtype) -> None:
    mask = torch.tensor([[1, 0, 1], [0, 0, 1]]).to(dtype)
    assert torch.equal(minimal(completion_mask=mask).completion_mask, mask.bool())


def test_carried_scores_win_over_rebuilt_ones() -> None:
    carried = torch.full((2, 3), 0.25)
    assert torch.equal(minimal(discriminant=carried).scores(), carried)
    assert torch.equal(minimal(centered_discriminant=carried, baseline=carried).centered_scores(), carried)
    assert torch.equal(minimal(discriminant=carried, baseline=carried).centered_scores(), carried - carried)


def test_rebuilt_scores_agree_with_the_exact_ones() -> None:
    batch = random_batch(0)
    rebuilt = replace(batch, discriminant=None, centered_discriminant=None)
    torch.testing.assert_close(rebuilt.scores(), batch.scores(), rtol=0, atol=1e-15)
    torch.testing.assert_close(rebuilt.centered_scores(), batch.centered_scores(), rtol=0, atol=1e-15)


def test_low_precision_is_widened_before_scores_are_rebuilt() -> None:
    batch = minimal(log_probs=torch.full((2, 3), -0.3, dtype=torch.bfloat16))
    assert batch.scores().dtype == torch.float32


def test_scores_carry_no_gradient() -> None:
    x = torch.full((2, 3), -0.5, requires_grad=True)
    batch = minimal(log_probs=x, entropy=-x, baseline=x * 2)
    assert not batch.scores().requires_grad
    assert not batch.centered_scores().requires_grad


def test_quadrants_follow_the_table_and_are_never_built_from_s() -> None:
    A = torch.tensor([[1.0, 1.0, -1.0], [-1.0, 0.0, 1.0]])
    S_c = torch.tensor([[0.1, -0.1, 0.1], [-0.1, 0.1, 0.0]])
    assert minimal(advantages=A, centered_discriminant=S_c).quadrants().tolist() == [[1, 2, 3], [4, 0, 0]]
    masked = minimal(advantages=A, centered_discriminant=S_c, completion_mask=torch.tensor([[0, 1, 1], [1, 1, 1]]))
    assert masked.quadrants().tolist() == [[0, 2, 3], [4, 0, 0]]
    with pytest.raises(ValueError, match=r"centered_discriminant: .*token_statistics"):
        minimal(advantages=A, discriminant=S_c).quadrants()


def test_quadrants_read_the_sign_of_nan_at_masked_positions_as_nothing() -> None:
    A, S_c = torch.full((2, 3), NAN), torch.full((2, 3), NAN)
    assert not minimal(advantages=A, centered_discriminant=S_c, completion_mask=torch.zeros(2, 3)).quadrants().any()


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("spec", ["none", "clip-v(mu=0)", "random-mask(fraction=0.3)", "entropy-floor(floor=1.9)"])
def test_columns_first_in_memory_are_the_same_batch(spec: str, full: bool) -> None:
    batch = random_batch(3)
    values = {f.name: getattr(batch, f.name) for f in fields(batch)} | {"advantages": batch.token_advantages}
    if full:
        values["completion_mask"] = torch.ones_like(batch.completion_mask)
    turned = {name: x.t().contiguous().t() if x is not None and x.dim() == 2 else x for name, x in values.items()}
    rows_first, columns_first = (
        rule(spec).apply(TokenBatch(**tensors), generator=torch.Generator().manual_seed(0))
        for tensors in (values, turned)
    )
    assert rows_first.metrics == columns_first.metrics
    assert torch.equal(rows_first.coefficients, columns_first.coefficients)
    assert columns_first.coefficients.is_contiguous()
    assert spec == "none" or rows_first.metrics["dropped"] > 0


def test_save_and_load_give_back_every_bit(tmp_path) -> None:
    batch = random_batch(3, dtype=torch.float32)
    spoiled = batch.log_probs.clone().masked_fill(~batch.completion_mask, NAN).requires_grad_()
    batch = replace(batch, log_probs=spoiled, old_entropy=batch.old_entropy.to(torch.bfloat16))
    batch = replace(batch, influence=spoiled.detach() / 7)
    batch.save(tmp_path / "batch.safetensors")
    again = TokenBatch.load(tmp_path / "batch.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["batch.safetensors"]
    for f in fields(batch):
        before, after = getattr(batch, f.name), getattr(again, f.name)
        assert (before is None) == (after is None), f.name
        if before is not None:
            assert before.dtype == after.dtype
            torch.testing.assert_close(after, before.detach(), rtol=0, atol=0, equal_nan=True)


def test_saving_views_and_shared_tensors(tmp_path) -> None:
    x = torch.full((4, 6), -0.5)[::2, ::2]
    batch = minimal(log_probs=x, baseline=x, old_log_probs=x, advantages=torch.ones(1).expand(2))
    batch.save(tmp_path / "b.safetensors")
    assert torch.equal(TokenBatch.load(tmp_path / "b.safetensors").old_log_probs, x)


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch) -> None:
    path = tmp_path / "b.safetensors"
    minimal().save(path)
    before = path.read_bytes()
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        minimal(rows=1, advantages=torch.ones(1)).save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_load_refuses_what_is_not_a_batch(tmp_path) -> None:
    path = tmp_path / "b.safetensors"
    with pytest.raises(ValueError, match="path: expected a TokenBatch file"):
        TokenBatch.load(path)
    path.write_bytes(b"not a safetensors file")
    with pytest.raises(ValueError, match="path: expected a TokenBatch file"):
        TokenBatch.load(path)
    x = torch.zeros(1, 2)
    save_file({"log_probs": x, "logits": x.clone()}, path)
    with pytest.raises(ValueError, match="no entropy, no advantages, no completion_mask, unknown logits"):
        TokenBatch.load(path)
    save_file({n: x.clone() + NAN for n in ("log_probs", "entropy", "advantages")} | {"completion_mask": x + 1}, path)
    with pytest.raises(ValueError, match="log_probs: expected finite values"):
        TokenBatch.load(path)
