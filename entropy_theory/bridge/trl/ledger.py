"""The ledger of on-policy entropy in TRL's trainer: what is measured, and when.

A batch enters the account when it is scored, under the policy that sampled it. Its tokens are scored again after the
last update that precedes the next batch: at the end of the optimizer step that ends its use, or, where a step spans
several generation batches, right before the next one is sampled. A batch without a valid token enters nothing: the
tokens of the batch before are then scored again after it, so that its updates (momentum, decay, KL) are part of that
batch's fixed-context change.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from entropy_theory import records
from entropy_theory.bridge.trl.carried import GROUPS
from entropy_theory.bridge.trl.generation import MODEL_INPUTS, RuleRun
from entropy_theory.bridge.trl.host import HostTrainer
from entropy_theory.bridge.trl.scoring import Scorer
from entropy_theory.errors import invalid
from entropy_theory.influence import (
    BatchEntropy,
    FirstOrder,
    Ledger,
    StepBatch,
    check_optimizer,
    entropy_gradient,
    step_parts,
)

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

_MASK = "mask"
_FILE = "ledger_{rank}.pt"


class LedgerKeeper:
    """Keeps the ledger of a trainer's run, and logs an entry when the next batch has been scored.

    Args:
        host: The trainer.
        run: The rule, for its collectives.
        scorer: Scores a batch under the present policy.
        influence_every: Split the fixed-context change of every k-th batch to first order; 0 never does.

    Raises:
        ValueError: The first order is asked for where parameters are spread over processes or devices.
    """

    def __init__(self, host: HostTrainer, run: RuleRun, scorer: Scorer, influence_every: int) -> None:
        self._host, self._run, self._scorer, self._influence_every = host, run, scorer, influence_every
        kind = str(getattr(host.accelerator.distributed_type, "value", host.accelerator.distributed_type))
        if influence_every and kind != "NO":
            raise invalid("influence_every", "0 where accelerate spreads the model over processes or devices", kind)
        self.ledger = Ledger()
        self._batch: dict[str, Tensor] = {}  # the last batch with a valid token: inputs, mask, groups
        self._measured_at: int | None = None  # the optimizer steps done when its tokens were last scored again
        self._before: dict[str, Tensor] = {}  # during an update: the weights, the gradient, and that of H̄
        self._gradient: dict[str, Tensor] = {}
        self._entropy_gradient: dict[str, Tensor] = {}

    def enter(self, output: Mapping[str, Any], entropy: Tensor, mask: Tensor) -> None:
        """Take up a freshly sampled batch, and log the finished entry of the one before.

        Args:
            output: TRL's dictionary, rows in the order of sampling.
            entropy: H under the policy that sampled, (B, T), in nats.
            mask: The tokens that count, (B, T).
        """
        split = bool(self._influence_every) and self.ledger.batches % self._influence_every == 0
        groups = output.get(GROUPS)
        sampled = BatchEntropy.from_tokens(entropy, mask, groups, self._run.reducer())
        self.ledger, entry = self.ledger.with_batch(sampled, split)
        self._batch = {name: output[name] for name in MODEL_INPUTS} | {_MASK: mask}
        if groups is not None:
            self._batch[GROUPS] = groups
        self._measured_at = None
        self._host.log_metrics({f"ledger/{name}": value for name, value in entry.metrics().items()})

    def measure(self) -> None:
        """Score the last batch's tokens under the present weights, unless no update was made since the last time."""
        if not self._batch or self._measured_at == self._host.state.global_step:
            return
        entropy = self._scorer.score(self._batch).entropy
        groups, reducer = self._batch.get(GROUPS), self._run.reducer()
        self.ledger = self.ledger.with_updated(BatchEntropy.from_tokens(entropy, self._batch[_MASK], groups, reducer))
        self._measured_at = self._host.state.global_step

    # -- the first order ----------------------------------------------------------------------------------------------

    def before_update(self) -> None:
        """Keep what the split of the coming optimizer step needs, where it is asked for."""
        self._before = {}
        if self.ledger.first_order is None or not self._batch:
            return
        model = self._host.accelerator.unwrap_model(self._host.model)
        moving = {name: p for name, p in model.named_parameters() if p.grad is not None}
        self._before = {name: p.detach().clone() for name, p in moving.items()}
        self._gradient = {name: p.grad.detach().clone() for name, p in moving.items()}
        self._entropy_gradient, _ = entropy_gradient(model, self._step_batch())

    def after_update(self, optimizer: Any) -> None:
        """Add the first-order parts of the optimizer step that has just been made."""
        if not self._before:
            return
        parameters = dict(self._host.accelerator.unwrap_model(self._host.model).named_parameters())
        parts = step_parts(optimizer, parameters, self._before, self._gradient)
        sums = (
            sum(float((self._entropy_gradient[name].double() * moved).sum()) for name, moved in part.items())
            for part in (parts.now, parts.momentum, parts.decay)
        )
        self.ledger = self.ledger.with_update(FirstOrder(*sums))
        self._before, self._gradient, self._entropy_gradient = {}, {}, {}

    def _step_batch(self) -> StepBatch:
        rows, device = len(self._batch[_MASK]), self._batch[_MASK].device
        return StepBatch(
            **{name: self._batch[name] for name in MODEL_INPUTS},
            advantages=torch.zeros(rows, device=device),  # not read: H̄ has none
            group_ids=self._batch.get(GROUPS, torch.arange(rows, device=device)),
            temperature=float(self._host.temperature),
            trained_mask=self._batch[_MASK],
        )

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """What a checkpoint's manifest keeps of the ledger."""
        return {"ledger": records.to_data(self.ledger), "measured_at": self._measured_at}

    def save(self, folder: Path) -> None:
        """Write this rank's rows of the last batch into a checkpoint."""
        torch.save(self._batch, folder / _FILE.format(rank=self._host.accelerator.process_index))

    def restore(self, folder: Path, manifest: Mapping[str, Any]) -> str | None:
        """Take up what a checkpoint holds; return in words what is lost.

        Raises:
            ValueError: It was written by another number of processes, which hold the rows of its last batch.
        """
        kept, accelerator = manifest.get("ledger"), self._host.accelerator
        if kept is None:
            return "the ledger begins here, because the checkpoint holds none"
        if manifest["processes"] != accelerator.num_processes:
            expected = f"{manifest['processes']} processes, as when {folder} was written with a ledger"
            raise invalid("resume_from_checkpoint", expected, accelerator.num_processes)
        self.ledger, self._measured_at = Ledger.from_data(kept["ledger"]), kept["measured_at"]
        path = folder / _FILE.format(rank=accelerator.process_index)
        self._batch = torch.load(path, map_location=accelerator.device, weights_only=True)
        return None


class LedgerCallback(TrainerCallback):
    """Calls a ledger's keeper around every optimizer step."""

    def __init__(self, keeper: LedgerKeeper, host: HostTrainer, influence_every: int) -> None:
        self._keeper, self._host, self._influence_every = keeper, host, influence_every

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Refuse an optimizer whose steps cannot be split, before any work."""
        if self._influence_every:
            check_optimizer(given["optimizer"])

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Read gradient and weights, after clipping."""
        self._keeper.before_update()

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Read the step, before the learning rate is changed."""
        self._keeper.after_update(given["optimizer"])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        """Score the batch again where this step was the last on it; before a checkpoint of this step is written."""
        if self._host.micro_step % (self._host.args.steps_per_generation * self._host.args.num_iterations) == 0:
            self._keeper.measure()
