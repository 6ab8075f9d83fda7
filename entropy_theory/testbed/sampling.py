"""Completions sampled from a causal language model, as tensors that say which of their tokens count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Completions:
    """Completions of prompts.

    Attributes:
        ids: Prompts, padded on the left, and completions, (B, P + T).
        attention_mask: Their tokens that are read, (B, P + T).
        counts: The completion tokens up to and with the end token, (B, T).
        texts: The completions as text, without special tokens.
    """

    ids: Tensor
    attention_mask: Tensor
    counts: Tensor
    texts: list[str]


def load_policy(folder: str, device: str = "cpu") -> tuple[Any, Any]:
    """Load a model, in float32 and for evaluation, and its tokenizer, which pads on the left."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True, dtype=torch.float32).to(device).eval()
    return model, AutoTokenizer.from_pretrained(folder, padding_side="left")


@torch.no_grad()
def sample_completions(
    policy: Any, tokenizer: Any, chats: Sequence[Any], length: int, *, copies: int = 1, **sampler: Any
) -> Completions:
    """Sample completions of chats from torch's generator: without truncation, unless the sampler says otherwise.

    Args:
        policy: A causal language model.
        tokenizer: Its tokenizer, with a chat template and padding on the left.
        chats: Lists of messages.
        length: Tokens of a completion at most.
        copies: Completions of each chat, one after the other.
        sampler: Options of ``generate``, such as ``top_p``.
    """
    prompts = [tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False) for chat in chats]
    inputs = tokenizer([prompt for prompt in prompts for _ in range(copies)], return_tensors="pt", padding=True)
    inputs = inputs.to(policy.device)
    options = {"top_k": 0, "top_p": 1.0} | sampler
    ids = policy.generate(**inputs, do_sample=True, max_new_tokens=length, **options)
    written = ids[:, inputs["input_ids"].shape[1] :]
    ended = (written == tokenizer.eos_token_id).int()
    counts = ended.cumsum(1) - ended == 0
    attention_mask = torch.cat([inputs["attention_mask"], counts.long()], dim=1)
    return Completions(ids, attention_mask, counts, tokenizer.batch_decode(written, skip_special_tokens=True))
