"""Record one generation batch of a real GRPO run, with everything that the rules may read.

    python simulations/record_batch.py --steps 20 --out runs/batch.safetensors
    entropy-theory lens runs/batch.safetensors

Trains the testbed's small decoder on the sum task with TRL and saves the statistics of the last generation batch,
second order included.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro


@dataclass(frozen=True)
class RecordConfig:
    """Record the last generation batch of a GRPO run.

    Attributes:
        steps: GRPO steps; the batch of the last one is saved.
        prompts: Prompts in the batch.
        generations: Completions of each prompt.
        rule: Rule that trains in the meantime.
        seed: Seed of the run.
        model: A folder of another warmed-up decoder; default: the testbed's own.
        out: The file.
    """

    steps: int = 20
    prompts: int = 8
    generations: int = 8
    rule: str = "none"
    seed: int = 0
    model: Path | None = None
    out: Path = Path("runs/batch.safetensors")


def main(config: RecordConfig) -> Path:
    """Train and save."""
    from transformers import PrinterCallback, ProgressCallback

    from entropy_theory.bridge.trl import EntropyControlledGRPOConfig, EntropyControlledGRPOTrainer
    from entropy_theory.control import TokenBatch
    from entropy_theory.testbed import decoder, sum_task
    from entropy_theory.vocab import token_statistics

    class Recorder(EntropyControlledGRPOTrainer):
        def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
            output = super()._generate_and_score_completions(inputs)
            if not self.model.training:
                return output
            ids = torch.cat([output["prompt_ids"], output["completion_ids"]], dim=1)
            mask = torch.cat([output["prompt_mask"], output["completion_mask"]], dim=1)
            length = output["completion_ids"].shape[1]
            with torch.no_grad():
                logits = self.model(input_ids=ids, attention_mask=mask).logits[:, -length - 1 : -1]
            found = token_statistics(
                logits, output["completion_ids"], temperature=float(self.temperature), second_order=True
            )
            count = ids.shape[0]
            self.seen = TokenBatch(
                log_probs=found.log_probs,
                entropy=found.entropy,
                advantages=torch.tensor(list(self._logs["advantages"])[-count:], dtype=torch.float32),
                completion_mask=output["completion_mask"].bool(),
                old_log_probs=found.log_probs,
                old_entropy=found.entropy,
                baseline=found.baseline,
                discriminant=found.discriminant,
                centered_discriminant=found.centered_discriminant,
                sum_squared_discriminant=found.sum_squared_discriminant,
                rewards=torch.tensor(list(*self._logs["rewards"].values())[-count:], dtype=torch.float32),
                group_ids=torch.arange(count) // self.num_generations,
                grpo_curvature=found.grpo_curvature,
            )
            return output

    with tempfile.TemporaryDirectory() as folder:
        trainer = Recorder(
            model=str(config.model or decoder.cached_checkpoint(decoder.WarmupConfig())),
            reward_funcs=sum_task.reward,
            args=EntropyControlledGRPOConfig(
                output_dir=folder,
                rule=config.rule,
                max_steps=config.steps,
                per_device_train_batch_size=config.prompts * config.generations,
                num_generations=config.generations,
                max_completion_length=sum_task.ANSWER_LENGTH + 1,
                learning_rate=1e-3,
                lr_scheduler_type="constant",
                beta=0.0,
                bf16=False,
                use_cpu=not torch.cuda.is_available(),
                report_to="none",
                save_strategy="no",
                disable_tqdm=True,
                gradient_checkpointing=False,
                model_init_kwargs={"dtype": "float32"},
                seed=config.seed,
            ),
            train_dataset=sum_task.dataset(2048, config.seed),
            processing_class=decoder.build_tokenizer(),
        )
        for callback in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(callback)
        trainer.train()
    config.out.parent.mkdir(parents=True, exist_ok=True)
    trainer.seen.save(config.out)
    print(f"{config.out}: {int(trainer.seen.completion_mask.sum())} tokens, {config.out.stat().st_size} bytes")
    return config.out


if __name__ == "__main__":
    sys.exit(main(tyro.cli(RecordConfig, description=__doc__)) is None)
