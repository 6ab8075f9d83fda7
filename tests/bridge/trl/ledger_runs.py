"""Runs whose ledger is held against an account from plain forwards; also a program for several ranks.

python ledger_runs.py MODEL FOLDER: under torchrun, each rank writes its rows and what was logged.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from trl_runs import arguments, build, closeness

from entropy_theory.bridge import trl as bridge
from entropy_theory.ranks import leave_ranks

NAME = "entropy_control/ledger/"


@torch.no_grad()
def entropies(model: torch.nn.Module, batch: dict[str, torch.Tensor], temperature: float) -> torch.Tensor:
    """H at the completion's positions, (B, T), in float64, from one forward of the model alone."""
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    training = model.training
    logits = model.eval()(input_ids=ids, attention_mask=mask).logits[:, -batch["completion_ids"].shape[1] - 1 : -1]
    model.train(training)
    return torch.distributions.Categorical(logits=logits.double() / temperature).entropy()


class Accounting(bridge.EntropyControlledGRPOTrainer):
    """Scores every batch apart, when it has been sampled, and the last one again before the next is sampled."""

    def _start_control(self) -> None:
        super()._start_control()
        self.account: list[dict[str, Any]] = []
        self.entries: list[dict[str, float]] = []  # before TRL averages over the batches of a step

    def log_metrics(self, values: dict[str, float]) -> None:
        super().log_metrics(values)
        if "ledger/entropy" in values:
            self.entries.append({name.removeprefix("ledger/"): value for name, value in values.items()})

    def again(self) -> None:
        """Score the last batch with a judged row under the present weights."""
        if self.account:
            self.account[-1]["after"] = entropies(self.model, self.account[-1]["batch"], self.temperature)

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        self.again()
        output = super()._generate_and_score_completions(inputs)
        mask = output["completion_mask"].bool() & ~self._rewards_here().isnan()[:, None]
        if mask.any():
            batch = {name: output[name].clone() for name in output if name.startswith(("prompt_", "completion_"))}
            before = entropies(self.model, batch, self.temperature)
            first = self.accelerator.process_index * len(mask)
            groups = torch.arange(first, first + len(mask)) // self.num_generations
            self.account.append({"batch": batch, "mask": mask, "groups": groups, "before": before})
        return output

    def _rewards_here(self) -> torch.Tensor:
        rows = len(self._rewards) // self.accelerator.num_processes
        return self._rewards[self.accelerator.process_index * rows :][:rows, 0]


def trained(model: Path, out: Path, kind: type = Accounting, **options: Any) -> Any:
    """Train with a ledger."""
    reward = options.pop("reward", closeness)
    resume = options.pop("resume", None)
    defaults = {"max_steps": 4, "learning_rate": 3e-3, "weight_decay": 0.1, "ledger": True}
    config = bridge.EntropyControlledGRPOConfig(**arguments(out, **(defaults | options)))
    trainer = build(kind, model, config, reward_funcs=reward)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def logged(trainer: Any) -> list[dict[str, float]]:
    """The entries of the ledger in the trainer's log."""
    return [
        {key.removeprefix(NAME): value for key, value in line.items() if key.startswith(NAME)}
        for line in trainer.state.log_history
        if NAME + "entropy" in line
    ]


if __name__ == "__main__":
    model, folder = sys.argv[1:]
    trainer = trained(Path(model), Path(folder) / "run", per_device_train_batch_size=16, num_generations=4)
    rank = trainer.accelerator.process_index
    torch.save({"account": trainer.account, "entries": trainer.entries}, Path(folder) / f"rank{rank}.pt")
    leave_ranks()
