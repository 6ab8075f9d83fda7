"""Run under torchrun: short runs of several rules on ranks that hold the whole model, or a shard of it (FSDP2).

torchrun --nproc-per-node 2 fsdp_ranks.py MODEL OUT whole|sharded RULE [RULE ...]
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor
from transformers import PrinterCallback
from trl import GRPOConfig
from trl_runs import arguments, build, closeness

from entropy_theory.bridge.trl import EntropyControlledGRPOTrainer
from entropy_theory.ranks import leave_ranks

FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "LlamaDecoderLayer",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
}


def allow_fsdp_on_a_cpu() -> None:
    """Do what accelerate does on a GPU: on a CPU it passes over its FSDP settings in silence and takes DDP."""
    prepare = AcceleratorState.__init__

    def with_fsdp(self: AcceleratorState, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        prepare(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            self.fsdp_plugin = fsdp_plugin

    AcceleratorState.__init__ = with_fsdp


def weights(trainer: EntropyControlledGRPOTrainer) -> torch.Tensor:
    whole = [p.full_tensor() if isinstance(p, DTensor) else p for p in trainer.model.parameters()]
    return torch.cat([p.detach().flatten() for p in whole])


def run(model: str, out: Path, rule: str, sharded: bool, resume: bool = False) -> torch.Tensor:
    options = arguments(
        out, max_steps=4, num_iterations=2, per_device_train_batch_size=16, save_strategy="steps", save_steps=2
    )
    trainer = build(EntropyControlledGRPOTrainer, Path(model), GRPOConfig(**options), reward_funcs=closeness, rule=rule)
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=str(out / "checkpoint-2") if resume else None)
    assert isinstance(next(trainer.model.parameters()), DTensor) == sharded
    return weights(trainer)


def main(model: str, out: Path, kind: str, rules: list[str]) -> None:
    if kind == "sharded":
        os.environ.update(FSDP2)
        allow_fsdp_on_a_cpu()
    ended = {}
    for number, rule in enumerate(rules):
        folder = out / f"{kind}-{number}"
        ended[rule] = run(model, folder, rule, kind == "sharded")
        if number == 0:
            ended["resumed"] = run(model, folder, rule, kind == "sharded", resume=True)
    if os.environ["RANK"] == "0":
        torch.save(ended, out / f"{kind}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], sys.argv[4:])
    leave_ranks()
