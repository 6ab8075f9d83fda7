"""Influence of unusual batches, models and surroundings: the right number, or one line that names the argument."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from influence_models import VOCAB, TinyModel, one_backward_per_token, step_batch
from torch import Tensor, nn

from entropy_theory.errors import InputError
from entropy_theory.influence import StepBatch, entropy_gradient, tangent_statistics, token_influence

ONES = torch.ones(2, 3, dtype=torch.long)


def batch_of(**changes: Any) -> StepBatch:
    fields = dict.fromkeys(("prompt_ids", "prompt_mask", "completion_ids", "completion_mask"), ONES)
    return StepBatch(**{**fields, "advantages": torch.ones(2), "group_ids": torch.arange(2)} | changes)


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        ("prompt_ids: expected a tensor, received list", {"prompt_ids": [[1, 1, 1]] * 2}),
        ("group_ids: expected a tensor", {"group_ids": None}),
        ("prompt_ids: expected integers", {"prompt_ids": ONES.float()}),
        ("completion_ids: expected integers", {"completion_ids": ONES.bool()}),
        ("completion_ids: expected token ids >= 0", {"completion_ids": -100 * ONES}),
        ("group_ids: expected integers", {"group_ids": torch.tensor([0.0, torch.nan])}),
        ("contexts: expected integers", {"contexts": ONES.float()}),
        ("advantages: expected real numbers", {"advantages": torch.ones(2) + 1j}),
        ("advantages: expected a tensor with data", {"advantages": torch.ones(2, device="meta")}),
        ("temperature: expected a finite number > 0, received '1'", {"temperature": "1"}),
        ("prompt_ids: expected at least one token", {"prompt_ids": ONES[:, :0], "prompt_mask": ONES[:, :0]}),
        ("prompt_mask: expected padding on the left", {"prompt_mask": torch.tensor([[1, 1, 1], [1, 1, 0]])}),
        ("prompt_mask: expected padding on the left", {"prompt_mask": torch.tensor([[0, 0, 0], [1, 1, 1]])}),
        ("completion_mask: expected padding on the right", {"completion_mask": torch.tensor([[1, 0, 1]] * 2)}),
        ("trained_mask: expected", {"completion_mask": torch.tensor([[1, 1, 0]] * 2), "trained_mask": ONES}),
    ],
)
def test_a_batch_that_no_model_can_be_measured_on(message: str, changes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=message):
        batch_of(**changes)


def test_a_row_without_a_trained_token_may_be_all_padding() -> None:
    nothing = torch.tensor([[0, 0, 0], [1, 1, 1]])
    influence = token_influence(TinyModel(), batch_of(prompt_mask=nothing, completion_mask=nothing))
    assert influence.count == 3
    assert not influence.values[0].any()
    assert influence.values[1].all()


class Changed(TinyModel):
    """A model whose output is changed by a function."""

    def __init__(self, change: Any) -> None:
        super().__init__()
        self.change = change

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        return self.change(super().forward(input_ids, attention_mask).logits)


class OtherArguments(TinyModel):
    def forward(self, tokens: Tensor, attention_mask: Tensor) -> Any:  # type: ignore[override]
        return super().forward(tokens, attention_mask)


class FurtherArgument(TinyModel):
    def forward(self, input_ids: Tensor, attention_mask: Tensor, images: Tensor) -> Any:  # type: ignore[override]
        return super().forward(input_ids, attention_mask)


def not_a_number(logits: Tensor) -> Tensor:
    return torch.where(torch.arange(len(logits))[:, None, None] == 1, torch.nan, logits)


@pytest.mark.parametrize(
    ("message", "model"),
    [
        ("model: expected a torch module, received str", "gpt2"),
        (r"a model whose output has \.logits, a tensor, received tuple", Changed(lambda logits: (logits,))),
        (
            r"logits \(1, at least 6, V\), received shape \(1, 2, 11\)",
            Changed(lambda z: SimpleNamespace(logits=z[:, :2])),
        ),
        ("logits that depend on what trains", Changed(lambda z: SimpleNamespace(logits=z.detach()))),
        ("model: expected finite", Changed(lambda z: SimpleNamespace(logits=not_a_number(z)))),
        (r"a forward of input_ids and attention_mask alone, received forward\(tokens, ", OtherArguments()),
        (r"a forward of input_ids and attention_mask alone, .*images\)", FurtherArgument()),
    ],
)
def test_a_model_that_cannot_be_measured(message: str, model: Any) -> None:
    for measure in (token_influence, tangent_statistics, entropy_gradient):
        with pytest.raises(InputError, match=message):
            measure(model, step_batch())


def test_a_batch_of_another_kind_and_a_token_that_the_model_does_not_know() -> None:
    model = TinyModel()
    for measure in (token_influence, entropy_gradient):
        with pytest.raises(InputError, match="batch: expected a StepBatch, received dict"):
            measure(model, vars(step_batch()))
    model.get_input_embeddings = lambda: nn.Embedding(5, 1)  # type: ignore[assignment]
    with pytest.raises(InputError, match="batch: expected token ids below 5"):
        token_influence(model, step_batch())


def test_a_preconditioner_has_real_factors_that_are_not_negative() -> None:
    model = TinyModel()
    ones = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    for message, factor in (("factors >= 0", -ones["inner"]), ("real numbers", ones["inner"] * 1j)):
        with pytest.raises(InputError, match=f"preconditioner: expected {message} for inner"):
            token_influence(model, step_batch(), preconditioner=ones | {"inner": factor})
    with pytest.raises(InputError, match=r"preconditioner: expected shape .* received NoneType"):
        token_influence(model, step_batch(), preconditioner=lambda direction: None)  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize("method", ["jvp", "difference"])
def test_a_sampled_token_whose_probability_underflows_has_its_influence(method: Any) -> None:
    """log p = −800 is finite; p is zero in float64."""
    offset = torch.zeros(VOCAB, dtype=torch.float64)
    offset[1] = -800
    model, batch = Changed(lambda logits: SimpleNamespace(logits=logits + offset)), step_batch()
    assert (batch.completion_ids[batch.valid] == 1).any()
    influence = token_influence(model, batch, method=method)
    expected = one_backward_per_token(model, batch, batch.valid)
    torch.testing.assert_close(influence.values[batch.valid], expected, rtol=1e-9, atol=10 * influence.error + 1e-12)


@pytest.mark.parametrize("method", ["jvp", "difference"])
def test_forbidden_tokens_change_nothing(method: Any) -> None:
    """Logits of −∞ beyond the vocabulary, as masks for sampling write them."""
    forbidden = torch.full((1, 1, 2), -torch.inf, dtype=torch.float64)

    def widened(logits: Tensor) -> Any:
        return SimpleNamespace(logits=torch.cat([logits, forbidden.expand(*logits.shape[:2], 2)], -1))

    values = token_influence(Changed(widened), step_batch(), method=method).values
    torch.testing.assert_close(values, token_influence(TinyModel(), step_batch(), method=method).values)


def test_the_difference_of_a_gradient_whose_square_underflows() -> None:
    batch = replace(step_batch(), temperature=0.01)
    exact = token_influence(TinyModel(), batch).values
    assert 0 < exact.abs().max() < 1e-20
    values = token_influence(TinyModel().float(), batch, method="difference").values
    assert (values - exact).abs().max() < 0.01 * exact.abs().max()  # a difference quotient in float32


@pytest.mark.parametrize("method", ["jvp", "difference"])
def test_surroundings_change_no_bit(method: Any) -> None:
    """Autocast reaches a backward, inference mode forbids one; a compiled model is measured as it was written."""
    model, batch = TinyModel().float(), step_batch()
    expected = token_influence(model, batch, method=method)
    for surroundings in (torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode(), torch.no_grad()):
        with surroundings:
            influence = token_influence(model, batch, method=method)
        assert torch.equal(influence.values, expected.values)
        assert influence.check == expected.check
    compiled = torch.compile(model)
    assert torch.equal(token_influence(compiled, batch, method=method).values, expected.values)
    assert "forward" in vars(compiled)


def test_the_widest_weights_give_the_precision() -> None:
    model, batch = TinyModel(), step_batch()
    model.embedding.data = model.embedding.data.float()
    wide = TinyModel()
    wide.embedding.data = model.embedding.data.double()
    assert torch.equal(token_influence(model, batch).values, token_influence(wide, batch).values)


def test_an_exception_leaves_the_model_as_it_was() -> None:
    model = TinyModel().train()
    model.output.grad = torch.ones_like(model.output)

    def failing(direction: dict[str, Tensor]) -> dict[str, Tensor]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        token_influence(model, step_batch(), preconditioner=failing)
    assert model.training
    assert bool((model.output.grad == 1).all())
    assert model.inner.grad is None
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


def test_each_part_of_a_model_has_its_attention_back() -> None:
    transformers = pytest.importorskip("transformers")
    text = {
        "vocab_size": VOCAB, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1,
        "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 32,
    }  # fmt: skip
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1,
              "image_size": 28, "patch_size": 14}  # fmt: skip
    config = transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    model = transformers.Gemma3ForConditionalGeneration(config)
    model.set_attn_implementation({"text_config": "sdpa", "vision_config": "eager"})

    def attentions() -> list[str]:
        return [part._attn_implementation for part in (config, config.text_config, config.vision_config)]

    before = attentions()
    assert len(set(before)) == 2
    assert token_influence(model, step_batch()).method == "jvp"
    assert attentions() == before
