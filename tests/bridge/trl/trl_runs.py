"""Small GRPO runs of a real decoder, shared by the tests of the bridge."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from trl import GRPOConfig, GRPOTrainer

from entropy_theory.testbed import decoder, sum_task


def closeness(completions: Sequence[str], target: Sequence[int], **_: Any) -> list[float]:
    """How close the sum of the digits is: unlike right or wrong, it differs within every group."""
    return [-abs(sum(map(int, filter(str.isdigit, c))) - t) / 10 for c, t in zip(completions, target, strict=True)]


def arguments(out: Path, **changes: Any) -> dict[str, Any]:
    return {
        "output_dir": str(out),
        "per_device_train_batch_size": 32,
        "num_generations": 8,
        "max_completion_length": 8,
        "max_steps": 1,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        "model_init_kwargs": {"dtype": "float32"},
    } | changes


def build(kind: type[GRPOTrainer], model: Any, args: GRPOConfig, **extra: Any) -> GRPOTrainer:
    return kind(
        model=str(model) if isinstance(model, Path) else model,
        args=args,
        processing_class=decoder.build_tokenizer(),
        **({"reward_funcs": sum_task.reward, "train_dataset": sum_task.dataset(64, 0)} | extra),
    )


def parameters_after(trainer: GRPOTrainer) -> torch.Tensor:
    trainer.train()
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
