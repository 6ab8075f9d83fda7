"""The influence of recorded tokens against one backward per token, through kills, layers and files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from entropy_theory import cli
from entropy_theory.control import TokenBatch
from entropy_theory.influence import model_view
from entropy_theory.influence.model_view import full_precision
from entropy_theory.inspection import influence
from entropy_theory.inspection.influence import influence_agreement, measure_influence, step_batch
from entropy_theory.inspection.scoring import Policy, load_policy
from entropy_theory.inspection.tokens import Tokenised


def sequence(prompt: list[int], completion: list[int]) -> Tokenised:
    return Tokenised(tuple(prompt), tuple(completion), ("x",) * len(completion))


SEQUENCES = [
    sequence([5, 6, 7, 8, 9, 10], [20, 21, 22]),
    sequence([11], [30, 31, 32, 33, 34]),
    sequence([12, 13, 14], []),
    sequence([12, 13, 14], [40]),
    sequence([15, 16], [20, 50]),
]


@pytest.fixture(scope="module")
def gpt2(byte_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that numbers its positions by itself, padding included."""
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("gpt2")
    tokenizer = AutoTokenizer.from_pretrained(byte_model)
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 40}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), initializer_range=0.3, **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def one_backward_per_token(policy: Policy, sequences: list[Tokenised], temperature: float) -> np.ndarray:
    """⟨∇H̄, ∇log p_t⟩ by reverse mode, every sequence by itself and without padding."""
    weights = [p.requires_grad_() for p in policy.model.parameters()]
    log_probs, entropies = [], []
    for rollout in sequences:
        if rollout.ids:
            logits = policy.model(input_ids=torch.tensor([rollout.prompt_ids + rollout.ids])).logits[0]
            logs = (logits[len(rollout.prompt_ids) - 1 : -1] / temperature).log_softmax(-1)
            log_probs += list(logs.gather(-1, torch.tensor(rollout.ids)[:, None])[:, 0])
            entropies += list(-(logs.exp() * logs).sum(-1))
    slope = torch.autograd.grad(torch.stack(entropies).mean(), weights, retain_graph=True)
    values = []
    for log_prob in log_probs:
        gradient = torch.autograd.grad(log_prob, weights, retain_graph=True)
        values.append(sum(float((a * b).sum()) for a, b in zip(slope, gradient, strict=True)))
    policy.model.requires_grad_(False)
    return np.array(values)


@pytest.mark.parametrize("bound", [1, 12, 8192])  # a sequence at a time, several batches, one
@pytest.mark.parametrize("kind", ["byte_model", "gpt2"])
def test_equals_one_backward_per_token(kind: str, bound: int, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Every weight counts as trained, although scoring holds them all without gradients."""
    policy = load_policy(str(request.getfixturevalue(kind)))
    policy.model.double()
    attention = policy.model.config._attn_implementation
    with full_precision(torch.float64):
        expected = one_backward_per_token(policy, SEQUENCES, 0.7)
    measured = measure_influence(policy, SEQUENCES, tmp_path, temperature=0.7, batch_tokens=bound)
    # kept in float32: half a unit in the last place is 6e-8
    np.testing.assert_allclose(measured.values, expected, rtol=1e-6, atol=1e-7 * np.abs(expected).max())
    assert (measured.method, measured.error) == ("jvp", 0.0)
    assert measured.check < 1e-12
    assert measured.weights == sum(p.numel() for p in policy.model.parameters())
    assert not any(p.requires_grad or p.grad is not None for p in policy.model.parameters())
    assert policy.model.config._attn_implementation == attention


def test_float32_is_close_and_a_single_token_has_an_influence(byte_model: Path, tmp_path: Path) -> None:
    policy = load_policy(str(byte_model))
    for sequences in (SEQUENCES, [sequence([5], [7])]):
        measured = measure_influence(policy, sequences, tmp_path)
        expected = one_backward_per_token(policy, sequences, 1.0)
        # float32 sums over 30,000 weights in two orders
        np.testing.assert_allclose(measured.values, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
        assert measured.check < 1e-4


def test_bfloat16_weights_are_measured_in_float32(byte_model: Path, tmp_path: Path) -> None:
    policy = load_policy(str(byte_model), dtype="bfloat16")
    measured = measure_influence(policy, SEQUENCES, tmp_path, batch_tokens=12)
    assert {p.dtype for p in policy.model.parameters()} == {torch.bfloat16}
    policy.model.float()  # the same rounded weights
    expected = one_backward_per_token(policy, SEQUENCES, 1.0)
    # as above; arithmetic in bfloat16 would be off by some percent
    np.testing.assert_allclose(measured.values, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_rows_are_padded_on_the_right_only() -> None:
    batch = step_batch(SEQUENCES)
    text = torch.cat([batch.prompt_ids, batch.completion_ids], 1)
    inside = torch.cat([batch.prompt_mask, batch.completion_mask], 1).bool()
    for row, rollout in enumerate(SEQUENCES):
        assert text[row][inside[row]].tolist() == [*rollout.prompt_ids, *rollout.ids]
        assert inside[row].int().diff().max() <= 0  # once outside, never inside again
        assert batch.completion_ids[row][batch.valid[row]].tolist() == list(rollout.ids)


@pytest.mark.parametrize("kill_at", ["in the gradient", "with their influence"])
def test_a_killed_run_resumes(byte_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kill_at: str) -> None:
    monkeypatch.setattr(influence, "SAVE_SECONDS", 0.0)
    policy = load_policy(str(byte_model))
    whole = measure_influence(policy, SEQUENCES, tmp_path / "undisturbed", batch_tokens=1)
    differentiated, moved = [], []
    gradient, tangents = model_view.ModelView.gradient, influence.tangents

    def counted_gradient(view: Any, **options: Any) -> Any:
        differentiated.append("entropy" in options)
        return gradient(view, **options)

    monkeypatch.setattr(model_view.ModelView, "gradient", counted_gradient)
    monkeypatch.setattr(influence, "tangents", lambda *words: (moved.append(1), tangents(*words))[1])
    calls = []

    def killed(done: int, total: int, words: str) -> None:
        calls.append(words)
        assert 0 < done <= total == 11
        if kill_at in words and sum(kill_at in word for word in calls) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_influence(policy, SEQUENCES, tmp_path / "killed", batch_tokens=1, progress=killed)
    again = measure_influence(policy, SEQUENCES, tmp_path / "killed", batch_tokens=1)
    assert np.array_equal(again.values, whole.values)
    assert again.check == whole.check
    assert (sum(differentiated), len(moved)) == (4, 4)  # no batch twice, over both runs
    assert not list(tmp_path.glob("*/*/direction.safetensors"))  # as large as the model, and of no more use
    measure_influence(policy, SEQUENCES, tmp_path / "killed", batch_tokens=1)
    assert (sum(differentiated), len(moved)) == (4, 4)
    measure_influence(policy, SEQUENCES, tmp_path / "killed", batch_tokens=1, temperature=0.5)
    assert (sum(differentiated), len(moved)) == (8, 8)  # another temperature is another result


class _Doubled(torch.autograd.Function):
    """The identity; its forward-mode derivative is wrong by a factor, or missing."""

    @staticmethod
    def forward(x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, slope: torch.Tensor) -> torch.Tensor:
        return slope


class _Wrong(_Doubled):
    @staticmethod
    def jvp(ctx: Any, tangent: torch.Tensor) -> torch.Tensor:
        return 2 * tangent


class _Layer(nn.Module):
    def __init__(self, inner: nn.Module, function: Any) -> None:
        super().__init__()
        self.inner, self.function = inner, function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function.apply(self.inner(x))


def test_a_layer_without_a_forward_mode_derivative(byte_model: Path, tmp_path: Path) -> None:
    policy = load_policy(str(byte_model))
    exact = measure_influence(policy, SEQUENCES, tmp_path / "exact")
    policy.model.model.norm = _Layer(policy.model.model.norm, _Doubled)
    measured = measure_influence(policy, SEQUENCES, tmp_path / "difference", batch_tokens=12)
    assert measured.method == "difference"
    assert measured.error > 0
    # the stated error is an estimate of a root mean square
    assert np.sqrt(np.mean((measured.values - exact.values) ** 2)) < 5 * measured.error
    assert np.sqrt(np.mean((measured.values - exact.values) ** 2)) < 1e-3 * np.sqrt(np.mean(exact.values**2))


def test_derivatives_that_disagree_are_refused(byte_model: Path, tmp_path: Path) -> None:
    policy = load_policy(str(byte_model))
    policy.model.model.norm = _Layer(policy.model.model.norm, _Wrong)
    with pytest.raises(ValueError, match="model: expected derivatives by jvp and by reverse mode that agree"):
        measure_influence(policy, SEQUENCES, tmp_path)


def test_numbers_that_are_not_finite_are_refused(byte_model: Path, tmp_path: Path) -> None:
    policy = load_policy(str(byte_model))
    policy.model.lm_head.weight.fill_(1e38)
    with pytest.raises(ValueError, match="model: expected finite logits, received NaN or infinity"):
        measure_influence(policy, SEQUENCES, tmp_path)


def test_changed_parts_are_refused(byte_model: Path, tmp_path: Path) -> None:
    policy = load_policy(str(byte_model))
    measure_influence(policy, SEQUENCES, tmp_path)
    (part,) = tmp_path.glob("*/part-*.safetensors")
    part.write_bytes(part.read_bytes()[:-4] + b"abcd")
    with pytest.raises(ValueError, match="scores: expected a file as this program wrote it"):
        measure_influence(policy, SEQUENCES, tmp_path)


def test_agreement_by_hand() -> None:
    tabular, values = np.array([1.0, 2.0, 3.0, 0.0]), np.array([1.0, -4.0, 9.0, 5.0])
    agreement = influence_agreement(tabular, values)
    assert agreement["pearson"] == pytest.approx(np.corrcoef(tabular, values)[0, 1])
    assert agreement["spearman"] == pytest.approx(np.corrcoef([1, 2, 3, 0], [1, 0, 3, 2])[0, 1])
    assert agreement["sign"] == pytest.approx(2 / 3)
    nothing = {"pearson": None, "spearman": None, "sign": None}
    assert influence_agreement(np.zeros(3), np.array([1.0, 2.0, 3.0])) == nothing
    assert influence_agreement(np.array([1.0]), np.array([2.0])) == {**nothing, "sign": 1.0}


def test_from_rollouts_to_the_lens(byte_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The two commands of the documentation; the table of tokens and the batch hold the influence of the model."""
    import pandas

    rollouts = tmp_path / "rollouts.jsonl"
    rollouts.write_text(
        '{"prompt": "so", "completion": " the sum", "reward": 1}\n{"prompt": "so", "completion": " x", "reward": 0}\n'
        '{"prompt": "terms", "completion": " right", "reward": 1}\n{"prompt": "terms", "completion": "", "reward": 0}\n'
    )
    batch_file, table_file = tmp_path / "batch.safetensors", tmp_path / "tokens.csv"
    words = ["inspect", str(rollouts), "--model", str(byte_model), "--influence", "--out", str(table_file)]
    assert cli.main([*words, "--save-batch", str(batch_file)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "by a forward-mode derivative" in out
    assert "for the lens" in out
    batch, table = TokenBatch.load(batch_file), pandas.read_csv(table_file)
    mask = batch.completion_mask
    policy = load_policy(str(byte_model))
    ids = table.groupby("completion")["token_id"].agg(list)
    prompts = [policy.tokenizer(text)["input_ids"] for text in ("so", "so", "terms", "terms")]
    sequences = [sequence(prompt, ids[row]) for row, prompt in enumerate(prompts)]
    expected = one_backward_per_token(policy, sequences, 1.0)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(batch.influence[mask], expected, rtol=1e-4, atol=1e-5 * scale)
    np.testing.assert_allclose(table["influence"], expected, rtol=1e-4, atol=1e-5 * scale)
    np.testing.assert_allclose(table["tabular_influence"], -table.centered_discriminant / len(table), rtol=1e-6)
    assert cli.main(["lens", str(batch_file), "--influence", "--resamples", "20", "--rules", "clip-b(mu=1)"]) == 0
    assert "by D" in capsys.readouterr().out
    # without the option: no field, and the lens says in one line how to get it
    assert cli.main([*words[:4], "--save-batch", str(batch_file), "--out", str(table_file)]) == 0
    capsys.readouterr()
    assert cli.main(["lens", str(batch_file), "--influence"]) == 2
    error = capsys.readouterr().err
    assert "--influence --save-batch FILE" in error
    assert error.count("\n") == 1
    for bad in ("batch.bin", "."):
        assert cli.main([*words, "--save-batch", str(tmp_path / bad)]) == 2
        assert "save_batch: expected a file ending in .safetensors" in capsys.readouterr().err
    assert cli.main([*words, "--save-batch", str(table_file / "b.safetensors")]) == 2
    assert "save_batch: expected a folder that can be written" in capsys.readouterr().err
    assert cli.main([*words, "--scores", str(table_file)]) == 2
    assert "scores: expected a folder that can be written" in capsys.readouterr().err
