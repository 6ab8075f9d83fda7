"""TRL's options with and without entropy control, on a local decoder of 21 tokens: the table of docs/trl.md.

    python simulations/trl_options.py            # writes the table into docs/trl.md
    python simulations/trl_options.py --no-write # prints it

Every option trains for two steps on each of two generation batches, three times: with plain TRL, with the rule "none",
and with the rule that is TRL's own surrogate, which then computes its loss at every update.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from entropy_theory.program import run_script

DOCUMENT = Path(__file__).parents[1] / "docs" / "trl.md"
BEGIN, END = "<!-- options: python simulations/trl_options.py -->", "<!-- end of options -->"

CLIP = "ppo-clip(dual_clip=None)"
ROUNDING = 1e-5  # of the update: float32 sums in another order


@dataclass(frozen=True)
class Option:
    """A row: what is set, and the rule that is TRL's surrogate under it; None where there is none, or it is refused."""

    changes: dict[str, Any]
    own: str | None = CLIP

    @property
    def name(self) -> str:
        """How the row is called."""
        return ", ".join(f"{key}={value}" for key, value in self.changes.items()) or "TRL's defaults"


OPTIONS = (
    Option({}),
    *(Option({"loss_type": loss}) for loss in ("grpo", "bnpo", "dr_grpo", "luspo")),
    Option({"loss_type": "cispo", "epsilon_high": 1.1}, "cispo(epsilon_low=None, epsilon_high=0.1)"),
    Option({"loss_type": "sapo"}, "sapo"),
    Option({"loss_type": "vespo"}, None),
    Option({"num_iterations": 1}),
    Option({"gradient_accumulation_steps": 2}),
    Option({"gradient_accumulation_steps": 2, "steps_per_generation": 4}),
    Option({"epsilon_high": 0.28}, "clip-higher(dual_clip=None)"),
    Option({"delta": 1.5}, None),
    Option({"importance_sampling_level": "sequence"}, None),
    Option({"off_policy_mask_threshold": 0.01}, None),
    Option({"beta": 0.05}),
    Option({"beta": 0.05, "use_bias_correction_kl": False}),
    Option({"temperature": 1.3}),
    Option({"top_entropy_quantile": 0.5}),
    Option({"entropy_coef": 0.1}, None),
    Option({"use_adaptive_entropy": True}, None),
    Option({"mask_truncated_completions": True}),
    Option({"gradient_checkpointing": True}),
    Option({"bf16": True}),
    Option({"cast_lm_head_to_fp32": True}),
    Option({"peft": "LoRA"}),
    Option({"peft": "LoRA", "beta": 0.05}),
)


@dataclass(frozen=True)
class Row:
    """What was measured: distances from plain TRL's update, as a share of it; None where nothing was to measure."""

    option: Option
    neutral: float
    own: float | None

    def __str__(self) -> str:
        own = "refused, or no such rule" if self.option.own is None else f"`{self.option.own}`: {_word(self.own)}"
        return f"| `{self.option.name}` | {_word(self.neutral)} | {own} |"


def _word(distance: float | None) -> str:
    if distance is None or not distance < ROUNDING:
        return f"DIFFERS: {distance}"
    return "to the bit" if distance == 0 else "to rounding"


def closeness(completions: Sequence[str], target: Sequence[int], **_: Any) -> list[float]:
    """How close the sum of the digits is: unlike right or wrong, it differs within every group."""
    return [-abs(sum(map(int, filter(str.isdigit, c))) - t) / 10 for c, t in zip(completions, target, strict=True)]


def available(option: Option) -> bool:
    """Say whether the row can be measured here: LoRA needs peft."""
    return "peft" not in option.changes or importlib.util.find_spec("peft") is not None


def measure(option: Option, model: Path) -> Row:
    """Train three times and compare."""
    start, plain = _train(option, model, None)
    size = torch.linalg.norm(plain - start).item()
    if not size > 0:
        raise RuntimeError(f"{option.name}: plain TRL did not move")

    def distance(rule: str) -> float:
        _, measured = _train(option, model, rule)
        return 0.0 if torch.equal(measured, plain) else torch.linalg.norm(measured - plain).item() / size

    return Row(option, distance("none"), None if option.own is None else distance(option.own))


def _train(option: Option, model: Path, rule: str | None) -> tuple[torch.Tensor, torch.Tensor]:
    from trl import GRPOConfig, GRPOTrainer

    from entropy_theory.bridge.trl import EntropyControlledGRPOTrainer
    from entropy_theory.testbed import decoder, sum_task

    changes = {"num_iterations": 2, "gradient_checkpointing": False, "bf16": False} | option.changes
    extra: dict[str, Any] = {} if rule is None else {"rule": rule}
    if changes.pop("peft", None):
        from peft import LoraConfig

        extra["peft_config"] = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        trainer = (GRPOTrainer if rule is None else EntropyControlledGRPOTrainer)(
            model=str(model),
            reward_funcs=closeness,
            args=GRPOConfig(
                output_dir=folder,
                per_device_train_batch_size=16,
                num_generations=8,
                max_completion_length=8,
                max_steps=4,
                optim="sgd",  # AdamW would divide rounding by small second moments
                max_grad_norm=0.0,
                learning_rate=0.5,
                lr_scheduler_type="constant",
                use_cpu=True,
                report_to="none",
                logging_strategy="no",
                save_strategy="no",
                disable_tqdm=True,
                model_init_kwargs={"dtype": "float32"},
                **changes,
            ),
            train_dataset=sum_task.dataset(64, 0),
            processing_class=decoder.build_tokenizer(),
            **extra,
        )
        before = torch.cat([p.detach().flatten().clone() for p in trainer.model.parameters()])
        trainer.train()
        return before, torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


def small_decoder() -> Path:
    """The testbed's decoder, warmed up for a second; cached."""
    from entropy_theory.testbed import decoder

    return decoder.cached_checkpoint(
        decoder.WarmupConfig(hidden_size=32, layers=1, heads=2, steps=250, batch_size=64, learning_rate=5e-3)
    )


def table(rows: Sequence[Row]) -> str:
    """Write the rows as Markdown."""
    head = "| option | rule `none` equals plain TRL | TRL's own surrogate as a rule equals plain TRL |\n|---|---|---|\n"
    return head + "\n".join(map(str, rows)) + "\n"


@dataclass(frozen=True)
class Config:
    """Measure the table of TRL's options.

    Attributes:
        write: Put it into docs/trl.md.
    """

    write: bool = True


def main(config: Config) -> str:
    """Measure every row."""
    missing = [option.name for option in OPTIONS if not available(option)]
    if missing and config.write:
        raise SystemExit(f"the rows {'; '.join(missing)} need peft: pip install peft")
    model = small_decoder()
    text = table([measure(option, model) for option in OPTIONS if available(option)])
    print(text)
    if config.write:
        before, rest = DOCUMENT.read_text(encoding="utf-8").split(BEGIN)
        DOCUMENT.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{rest.split(END)[1]}", encoding="utf-8")
    return text


if __name__ == "__main__":
    run_script(main, Config)
