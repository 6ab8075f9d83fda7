"""Run as a program (alone or under torchrun): one optimizer step on recorded completions, the update to a file.

python replay.py record MODEL RECORDING
torchrun --nproc-per-node N replay.py replay MODEL RECORDING OUT ACCUMULATION RULE [RULE ...]
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from trl import GRPOConfig

from entropy_theory.bridge.trl import EntropyControlledGRPOTrainer
from entropy_theory.testbed import decoder, sum_task

PROMPTS, GENERATIONS = 8, 8


def build(model: str, out: str, accumulation: int, rule: str, **extra: object) -> EntropyControlledGRPOTrainer:
    world = int(os.environ.get("WORLD_SIZE", "1"))
    args = GRPOConfig(
        output_dir=out,
        per_device_train_batch_size=PROMPTS * GENERATIONS // (world * accumulation),
        gradient_accumulation_steps=accumulation,
        num_generations=GENERATIONS,
        max_completion_length=8,
        max_steps=1,
        learning_rate=1.0,
        lr_scheduler_type="constant",
        optim="sgd",
        max_grad_norm=0.0,
        shuffle_dataset=False,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        model_init_kwargs={"dtype": "float32"},
    )
    return EntropyControlledGRPOTrainer(
        model=model,
        reward_funcs=sum_task.reward,
        args=args,
        train_dataset=sum_task.dataset(PROMPTS, 0),
        processing_class=decoder.build_tokenizer(),
        rule=rule,
        **extra,
    )


def record(model: str, path: Path) -> None:
    """Let the real policy answer the prompts once and keep what it wrote."""
    trainer = build(model, str(path.parent / "trainer"), 1, "none")
    kept: dict[str, list[list[int]]] = {}
    generate = trainer._generate_single_turn

    def watch(prompt_ids: list[list[int]], *args: object) -> tuple[list[list[int]], object]:
        completion_ids, log_probs = generate(prompt_ids, *args)
        for prompt, completion in zip(prompt_ids, completion_ids, strict=True):
            kept.setdefault(json.dumps(list(prompt)), []).append(list(completion))
        return completion_ids, log_probs

    trainer._generate_single_turn = watch
    trainer.train()
    path.write_text(json.dumps(kept))


def replay(model: str, recording: Path, out: Path, accumulation: int, rules: list[str]) -> None:
    """Take one step per rule on the recorded completions and save the updates."""
    kept = json.loads(recording.read_text())
    updates = {}
    for rule in rules:
        trainer = build(model, str(out.parent / "trainer"), accumulation, rule)
        taken: dict[str, int] = {}

        def answer(
            prompt_ids: list[list[int]], *_: object, taken: dict[str, int] = taken
        ) -> tuple[list[list[int]], None]:
            completions = []
            for prompt in prompt_ids:
                key = json.dumps(list(prompt))
                completions.append(kept[key][taken.get(key, 0)])
                taken[key] = taken.get(key, 0) + 1
            return completions, None

        trainer._generate_single_turn = answer
        assert trainer.accelerator.num_processes == int(os.environ.get("WORLD_SIZE", "1"))
        start = torch.cat([p.detach().flatten().clone() for p in trainer.model.parameters()])
        trainer.train()
        update = torch.cat([p.detach().flatten() for p in trainer.model.parameters()]) - start
        dropped = trainer.state.log_history[0].get("entropy_control/dropped_share")
        updates[rule] = (update, dropped)
    if int(os.environ.get("RANK", "0")) == 0:
        torch.save(updates, out)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "record":
        record(sys.argv[2], Path(sys.argv[3]))
    else:
        replay(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]), int(sys.argv[5]), sys.argv[6:])
