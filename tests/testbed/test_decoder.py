"""The small decoder: its tokenizer round-trips, its warm-up learns, its cache is whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from entropy_theory.testbed import decoder, sum_task

pytest.importorskip("transformers")

SHORT = decoder.WarmupConfig(hidden_size=16, layers=1, heads=2, steps=30, batch_size=32)


def test_tokenizer_round_trip() -> None:
    tokenizer = decoder.build_tokenizer()
    assert len(tokenizer) == 21
    ids = tokenizer("17=9+0+1+7<eos>")["input_ids"]
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == "17=9+0+1+7"
    assert tokenizer(["6=", "17="], padding=True)["input_ids"][0][0] == tokenizer.pad_token_id


def test_the_default_decoder_is_the_small_one() -> None:
    model = decoder.build_model(decoder.WarmupConfig(), 21)
    assert sum(p.numel() for p in model.parameters()) == 84_928


def test_weights_come_from_the_seed_and_leave_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, again = decoder.build_model(SHORT, 21), decoder.build_model(SHORT, 21)
    assert torch.equal(before, torch.random.get_rng_state())
    for a, b in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_warm_up_learns_and_is_cached_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(decoder.CACHE_VARIABLE, str(tmp_path))
    seen: list[str] = []
    folder = decoder.cached_checkpoint(SHORT, lambda done, total, words: seen.append(words))
    losses = [float(words.split()[1]) for words in seen]
    assert len(losses) == 30
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    assert decoder.cached_checkpoint(SHORT, lambda *_: pytest.fail("trained twice")) == folder
    assert [p.name for p in tmp_path.iterdir()] == [folder.name]  # nothing half-written is left beside it
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert AutoTokenizer.from_pretrained(folder)(sum_task.prompt(6))["input_ids"] == [9, 17]
    assert AutoModelForCausalLM.from_pretrained(folder).config.vocab_size == 21


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 30}, "hidden_size: expected a multiple of 2"),
        ({"steps": -1}, "steps: expected an integer >= 0"),
        ({"learning_rate": 0.0}, "learning_rate: expected a finite number > 0"),
        ({"batch_size": 0}, "batch_size: expected an integer >= 1"),
    ],
)
def test_bad_configuration(change: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decoder.WarmupConfig(**change)
