"""Completions of a small model: which tokens count, and that scoring them again finds the policy that sampled."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from entropy_theory.testbed import decoder

pytest.importorskip("transformers")
from entropy_theory.testbed.sampling import load_policy, sample_completions

CHATS = [[{"role": "user", "content": "6="}], [{"role": "user", "content": "17="}]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("policy")
    tokenizer = decoder.build_tokenizer()
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    tokenizer.save_pretrained(out)
    decoder.build_model(decoder.WarmupConfig(hidden_size=16, layers=1, heads=2), len(tokenizer)).save_pretrained(out)
    return out


def test_tokens_count_up_to_the_end_token(folder: Path) -> None:
    policy, tokenizer = load_policy(str(folder))
    torch.manual_seed(0)
    written = sample_completions(policy, tokenizer, CHATS, 12, copies=20)
    prompt = written.ids.shape[1] - written.counts.shape[1]
    assert prompt == 3  # the shorter one is padded on the left
    assert written.ids[0, 0] == tokenizer.pad_token_id
    assert written.attention_mask[[0, 20], 0].tolist() == [0, 1]
    lengths = []
    for tokens, counts, text in zip(
        written.ids[:, prompt:].tolist(), written.counts.tolist(), written.texts, strict=True
    ):
        end = tokens.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in tokens else len(tokens)
        assert counts == [place < end for place in range(len(tokens))]
        assert text == tokenizer.decode(tokens[:end], skip_special_tokens=True)
        lengths.append(end)
    assert min(lengths) < max(lengths)  # some ended before others
    assert torch.equal(written.attention_mask[:, prompt:].bool(), written.counts)


def test_the_sampler_truncates_when_it_is_asked_to(folder: Path) -> None:
    policy, tokenizer = load_policy(str(folder))
    greedy = sample_completions(policy, tokenizer, CHATS, 6, copies=4, top_k=1)
    assert len(set(greedy.texts[:4])) == len(set(greedy.texts[4:])) == 1
    torch.manual_seed(0)
    free = sample_completions(policy, tokenizer, CHATS, 6, copies=4)
    assert len(set(free.texts[:4])) > 1
