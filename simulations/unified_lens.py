"""Section 4.2 of arXiv 2602.03392 through the lens: why existing methods move entropy as they do.

    python simulations/unified_lens.py --quick
    python simulations/unified_lens.py --processes 2

Four observations of the paper, on banks of forking policies and in the real GRPO loop of TRL: (1) the tokens that PPO
clipping cuts have small probability and mostly S_c < 0; (2) clip-higher lets back through positive ones that raise
entropy; (3) training on the share ρ of tokens with the highest entropy alone acts on entropy non-monotonically in ρ;
(4) up-weighting unlikely positive tokens slows collapse.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import grpo_runs
import numpy as np
import sweep
from bank_runs import LEFT_OUT, BankRun, simulate

from entropy_theory.program import run_script

LOW, HIGH, HIGHER = 0.2, 0.2, 0.28
"""PPO's ε on both sides, and the upper one of clip-higher (arXiv 2503.14476)."""

BINS = (0.0, 1e-4, 1e-3, 1e-2, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Edges of the histograms of p."""


@dataclass(frozen=True)
class LensConfig(sweep.SweepOptions):
    """Look at the four observations.

    Attributes:
        seeds: Seeds of the banks.
        policies: Policies in a bank.
        vocab_size: Tokens per policy.
        steps: Sampled batches.
        step_size: Step of the logits.
        iterations: Updates per batch where ratios matter.
        clip_rules: Rules compared on ratio clipping.
        shares: ρ of the highest-entropy tokens that are trained on.
        weights: Weights of the tenth of the positive tokens that is least likely.
        real_shares: ρ in the real loop.
        real_weights: Weights in the real loop.
        real_seeds: Seeds of the real loop.
        real_steps: Its optimizer steps.
        tiny: Real loop with the decoder that is warmed up in a second.
    """

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    policies: int = 500
    vocab_size: int = 100
    steps: int = 200
    step_size: float = 0.5
    iterations: int = 4
    clip_rules: tuple[str, ...] = ("none", "clip-low", "ppo-clip", "clip-higher")
    shares: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0)
    weights: tuple[float, ...] = (1.0, 1.5, 2.0, 4.0)
    real_shares: tuple[float, ...] = (0.2, 1.0)
    real_weights: tuple[float, ...] = (1.0, 2.0)
    real_seeds: tuple[int, ...] = (0, 1, 2)
    real_steps: int = 200
    tiny: bool = False


QUICK: dict[str, Any] = {
    "seeds": (0, 1),
    "policies": 100,
    "vocab_size": 50,
    "steps": 40,
    "shares": (0.05, 0.2, 1.0),
    "weights": (1.0, 3.0),
    "real_shares": (0.2, 1.0),
    "real_weights": (1.0,),
    "real_seeds": (0,),
    "real_steps": 8,
    "tiny": True,
}


@dataclass(frozen=True)
class ClippedInBank:
    """The tokens that PPO clipping cuts while a bank of forking policies is trained with it."""

    seed: int
    policies: int
    vocab_size: int
    steps: int
    step_size: float
    iterations: int


@dataclass(frozen=True)
class ClippedInModel:
    """The tokens that PPO clipping cuts while TRL trains the small decoder with it."""

    seed: int
    steps: int
    iterations: int
    prompts: int = 16
    generations: int = 16
    tiny: bool = False


class Cut:
    """Collects the tokens outside PPO's band, and what clip-higher lets back through."""

    def __init__(self) -> None:
        self.tokens = 0
        self.parts: dict[str, list[np.ndarray]] = {name: [] for name in ("high", "low", "back", "all")}

    def see(self, probs: Any, ratio: Any, advantages: Any, centered: Any) -> None:
        """Take the tokens of one update, arrays of one shape: p and S_c now, r, A."""
        columns = [np.asarray(x, dtype=np.float64).ravel() for x in (probs, ratio, advantages, centered)]
        _, r, A, _ = columns
        self.tokens += r.size
        measured = np.stack([columns[0], columns[3], -r * A * columns[3]])  # p, S_c, predicted effect but for η/n
        for name, which in (
            ("high", (A > 0) & (r > 1 + HIGH)),
            ("low", (A < 0) & (r < 1 - LOW)),
            ("back", (A > 0) & (r > 1 + HIGH) & (r <= 1 + HIGHER)),
            ("all", A != 0),
        ):
            self.parts[name].append(measured[:, which])

    def result(self) -> dict[str, Any]:
        """Number, probabilities and signs of the tokens of each kind."""
        measured: dict[str, Any] = {"tokens": self.tokens}
        parts = {name: np.concatenate(several, axis=1) for name, several in self.parts.items()}
        parts["cut"] = np.concatenate([parts["high"], parts["low"]], axis=1)
        for name, (p, centered, effect) in parts.items():
            measured[name] = {"count": p.size, "histogram": np.histogram(p, BINS)[0].tolist()}
            if p.size:
                q50, q90, q99 = (float(q) for q in np.quantile(p, (0.5, 0.9, 0.99)))
                measured[name] |= sweep.rounded(
                    {
                        "median_p": q50,
                        "p90": q90,
                        "p99": q99,
                        "largest_p": float(p.max()),
                        "share_up_to_15": float((p <= 0.15).mean()),
                        "share_negative_centered": float((centered < 0).mean()),
                        "effect": float(effect.mean()),
                        "rising_share_of_effect": float(effect[effect > 0].sum() / np.abs(effect).sum()),
                    }
                )
        return measured


def clipped_in_bank(task: ClippedInBank) -> dict[str, Any]:
    """Train a bank with PPO clip, as `Simulation` does, and look at the cut tokens of every update but the first."""
    import torch

    from entropy_theory.dynamics import Simulation, SimulationConfig, bank, grpo
    from entropy_theory.dynamics.draws import Draw, generator

    config = SimulationConfig(
        policies=task.policies, vocab_size=task.vocab_size, initialisation="forking", seed=task.seed
    )
    start = Simulation(config)
    logits, correct, cut = start.logits, start.correct, Cut()
    for step in range(task.steps):
        old = bank.policy_statistics(logits)
        source = generator(task.seed, Draw.TOKENS, step)
        tokens = bank.sample_tokens(
            old.probs, torch.rand(task.policies, config.group_size, generator=source, dtype=torch.float64)
        )
        A = grpo.group_advantages(correct.gather(-1, tokens).double(), "std")
        before = old.at(tokens).log_probs
        for iteration in range(task.iterations):
            now = old if iteration == 0 else bank.policy_statistics(logits)
            scores = now.at(tokens)
            ratio = (scores.log_probs - before).exp()
            if iteration:
                cut.see(scores.log_probs.exp(), ratio, A, scores.centered_discriminant)
            kept = ~(((A > 0) & (ratio > 1 + HIGH)) | ((A < 0) & (ratio < 1 - LOW)))
            logits = logits + grpo.move_of_logits(now, tokens, ratio * A * kept, task.step_size / config.group_size)
    return cut.result()


def clipped_in_model(task: ClippedInModel) -> dict[str, Any]:
    """Train the decoder with TRL and look at the tokens that PPO clipping cuts."""

    def train(kind: type[Any]) -> None:
        grpo_runs.train_observed(
            kind,
            tiny=task.tiny,
            steps=task.steps,
            prompts=task.prompts,
            generations=task.generations,
            seed=task.seed,
            num_iterations=task.iterations,
        )

    return cut_in_training(train, task.iterations).result()


def cut_in_training(train: Callable[[type[Any]], Any], iterations: int) -> Cut:
    """Train with TRL, whose own loss is PPO's, and look at the batch's tokens before every update but its first.

    Args:
        train: Trains with a trainer of the class that it is given.
        iterations: Updates per batch.
    """
    import torch
    from transformers import TrainerCallback
    from trl import GRPOTrainer

    from entropy_theory.vocab import TokenStatistics, token_statistics

    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    cut = Cut()

    class Watched(GRPOTrainer):
        """Keeps the batch it trains on, with log p before the first update."""

        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self.add_callback(Watch(self))

        def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
            output: dict[str, Any] = super()._generate_and_score_completions(inputs)
            self.batch = {k: output[k] for k in ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")}
            self.advantages = torch.tensor(list(self._logs["advantages"])[-output["prompt_ids"].shape[0] :])
            self.before, self.updates = self.statistics(), 0
            return output

        @torch.no_grad()
        def statistics(self) -> TokenStatistics:
            batch = self.batch
            ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
            mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
            length = batch["completion_ids"].shape[1]
            logits = self.model(input_ids=ids, attention_mask=mask).logits[:, -length - 1 : -1]
            return token_statistics(logits, batch["completion_ids"])

    class Watch(TrainerCallback):
        """Looks after each update, unless the batch is used up."""

        def __init__(self, trainer: Any) -> None:
            self._trainer = trainer

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            trainer = self._trainer
            trainer.updates += 1
            if trainer.updates == iterations:
                return
            now, valid = trainer.statistics(), trainer.batch["completion_mask"].bool()
            ratio = (now.log_probs - trainer.before.log_probs).exp()
            A = trainer.advantages.unsqueeze(1).expand_as(ratio)
            cut.see(*(x[valid] for x in (now.log_probs.exp(), ratio, A, now.centered_discriminant)))

    train(Watched)
    return cut


def high_entropy(share: float) -> str:
    """The rule that trains on the share of highest entropy."""
    return "none" if share == 1 else "high-entropy" if share == 0.2 else f"high-entropy(share={share:g})"


def up_weighted(weight: float) -> str:
    """The rule that up-weights the least likely tenth of the positive tokens (STARE's, without gate)."""
    return "none" if weight == 1 else f"stare(up={weight:g}, up_max={max(weight, 1.5):g}, target=None)"


def tasks(config: LensConfig) -> list[Any]:
    """Cut tokens; ratio clipping, shares and weights on the bank; shares and weights in the real loop."""
    size = (config.policies, config.vocab_size, config.steps, config.step_size)
    small = {"prompts": 4, "generations": 4} if config.tiny else {}
    once = dict.fromkeys((*map(high_entropy, config.shares), *map(up_weighted, config.weights)))
    real = dict.fromkeys((*map(high_entropy, config.real_shares), *map(up_weighted, config.real_weights)))
    return [
        *(ClippedInBank(seed, *size, config.iterations) for seed in config.seeds),
        *(BankRun(rule, s, *size, iterations=config.iterations) for s in config.seeds for rule in config.clip_rules),
        *(BankRun(rule, s, *size, iterations=1) for s in config.seeds for rule in once),
        *(
            ClippedInModel(seed, config.real_steps, config.iterations, tiny=config.tiny, **small)
            for seed in config.real_seeds
        ),
        *(
            grpo_runs.GrpoRun(
                rule, seed, config.real_steps, tiny=config.tiny, **small, **({"samples": 8} if small else {})
            )
            for seed in config.real_seeds
            for rule in real
        ),
    ]


def work(task: Any) -> dict[str, Any]:
    """Do a task of any kind."""
    kinds: dict[type, Any] = {
        ClippedInBank: clipped_in_bank,
        ClippedInModel: clipped_in_model,
        BankRun: simulate,
        grpo_runs.GrpoRun: grpo_runs.train,
    }
    return kinds[type(task)](task)


def cut_table(measured: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds of what `Cut` found, by kind of token."""
    seen = list(measured)
    table: dict[str, Any] = {}
    for kind in ("all", "cut", "high", "low", "back"):
        counted = [entry for entry in seen if entry[kind]["count"]]
        if counted:
            names = [name for name in counted[0][kind] if name not in ("histogram", "count")]
            table[kind] = {name: sweep.interval([entry[kind][name] for entry in counted]) for name in names}
            table[kind]["share_of_tokens"] = sweep.interval(
                [entry[kind]["count"] / entry["tokens"] for entry in counted]
            )
    return table


def summarise(results: list[dict[str, Any]]) -> dict[str, Any]:
    """The numbers of each observation, means over seeds."""

    def of(**fields: Any) -> list[dict[str, Any]]:
        return [r for r in results if all(r["task"].get(k) == v for k, v in fields.items())]

    iterations = max(r["task"]["iterations"] for r in results if "iterations" in r["task"])
    cut = [r for r in results if "rule" not in r["task"]]
    ratio = grpo_runs.final_intervals(of(iterations=iterations))["bank"]
    rest = grpo_runs.final_intervals([*of(iterations=1), *(r for r in results if "num_iterations" in r["task"])])
    ppo, higher = (
        [r["result"]["final"]["entropy"] for r in of(iterations=iterations, rule=name)]
        for name in ("ppo-clip", "clip-higher")
    )
    return {
        "clip_higher_over_ppo_clip": sweep.interval([b - a for a, b in zip(ppo, higher, strict=True)]),
        "cut_in_bank": cut_table(r["result"] for r in cut if "policies" in r["task"]),
        "cut_in_model": cut_table(r["result"] for r in cut if "prompts" in r["task"]),
        "ratio_clipping": ratio,
        "bank": rest["bank"],
        "real": rest["real"],
    }


def main(config: LensConfig) -> dict[str, Any] | None:
    """Run, record, print."""
    config = sweep.with_quick_settings(config, QUICK)
    record = sweep.run("unified_lens", config, tasks(config), work, summarise, LEFT_OUT)
    if record is not None:
        summary = record["summary"]
        for place in ("bank", "model"):
            print(f"\n(1) and (2): tokens outside PPO's band, {place}; means over seeds ± 95 % t-intervals")
            for kind, row in summary[f"cut_in_{place}"].items():
                words = ", ".join(f"{name.replace('_', ' ')} {sweep.shown(measured)}" for name, measured in row.items())
                print(f"{kind:5}{words}")
        print(f"\n(2): ratio clipping on the bank, {config.iterations} updates per batch")
        for rule, row in summary["ratio_clipping"].items():
            print(f"{rule:20}entropy {sweep.shown(row['entropy'])}, reward {sweep.shown(row['reward'])}")
        print(f"entropy of clip-higher over ppo-clip, by seed: {sweep.shown(summary['clip_higher_over_ppo_clip'], 4)}")
        print("\n(3) and (4): shares and weights")
        grpo_runs.print_finals(summary)
    return record


if __name__ == "__main__":
    run_script(main, LensConfig)
