"""Whether a batch fits into memory, said before the first step instead of by the kernel after it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from entropy_theory.errors import invalid
from entropy_theory.ranks import PARENT_VARIABLE

_CGROUP = Path("/sys/fs/cgroup")
_GIB = 2**30


def needed_bytes(model: Any, rows: int, prompt: int, completion: int, *, bf16: bool, checkpointing: bool) -> int:
    """Estimate from below what training needs besides the weights, in bytes.

        4 P_g + 8 P_g  +  b (n + m) L w (10 h + 4 i)  +  3 · 4 b (m + 1) V

    Gradients and AdamW's moments of the P_g weights that are trained; what a decoder layer keeps for the backward pass,
    with recomputation the h inputs alone; and logits of the completion, their log-softmax and their gradient.

    Args:
        model: The model, with L layers of width h, MLPs of width i and a vocabulary of V.
        rows: b, sequences in a micro-batch.
        prompt: n, tokens of a prompt.
        completion: m, tokens of a completion.
        bf16: Whether activations are in bfloat16 (w = 2) or float32 (w = 4).
        checkpointing: Whether activations are recomputed.
    """
    config = model.config.get_text_config()
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    hidden, layers = int(config.hidden_size), int(config.num_hidden_layers)
    inner = int(getattr(config, "intermediate_size", None) or 4 * hidden)
    kept = hidden if checkpointing else 10 * hidden + 4 * inner
    activations = rows * (prompt + completion) * layers * kept * (2 if bf16 else 4)
    return 12 * trained + activations + 12 * rows * (completion + 1) * int(config.vocab_size)


def available_bytes(device: torch.device) -> int | None:
    """Return the memory that a process may still take on a device, in bytes; None where the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return None
    try:  # a container's own limit
        limit, used = ((_CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
        return free if limit == "max" else min(free, int(limit) - int(used))
    except (OSError, ValueError):
        return free


def check_memory(trainer: Any, prompts: Sequence[Any], available: int | None = None) -> None:
    """Raise ValueError with the estimate if a micro-batch cannot fit, for a run of one process.

    Args:
        trainer: TRL's trainer, its model loaded.
        prompts: Some prompts; the shortest counts, because the estimate is from below.
        available: Bytes; default: what the system says.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return
    args = trainer.args
    free = available_bytes(args.device) if available is None else available
    if free is None:
        return
    rows = args.per_device_train_batch_size
    needed = needed_bytes(
        trainer.model,
        rows,
        min(prompt_tokens(trainer.processing_class, prompt) for prompt in prompts),
        args.max_completion_length,
        bf16=args.bf16,
        checkpointing=args.gradient_checkpointing,
    )
    if needed > free:
        less = "fewer, shorter completions, --gradient-accumulation or --gradient-checkpointing"
        if PARENT_VARIABLE in os.environ:  # the commands that compare arms have neither option
            less = "fewer or shorter completions, or --processes 1,"
        raise invalid(
            "prompts_per_step",
            f"a batch that fits into the {free / _GIB:.1f} GiB of memory that are free",
            f"{rows} sequences at a time, which need about {needed / _GIB:.1f} GiB or more ({less} need less)",
        )


def prompt_tokens(tokenizer: Any, prompt: Any) -> int:
    """Count the tokens of a prompt: a text, or messages that the chat template writes."""
    text = prompt if isinstance(prompt, str) else tokenizer.apply_chat_template(prompt, tokenize=False)
    return len(tokenizer(text)["input_ids"])
