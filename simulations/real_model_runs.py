"""What `real_model.py` does with SmolLM2-135M-Instruct: GRPO runs, policies that are sampled, tokens that PPO cuts."""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from grpo_runs import pass_at
from sweep import rounded
from unified_lens import cut_in_training

MODEL, TASK, LARGEST = "smollm2", "addition", 14
COMPLETION = 16
"""Tokens of a completion at most."""
HELD_OUT = "addition:largest=24"
"""Held-out prompts are those of this task with a number that training never shows, one above `LARGEST`."""

COLUMNS = (
    "entropy",
    "reward",
    "distinct",
    "distinct_right",
    "completions/mean_length",
    "entropy_control/slope",
    "entropy_control/dropped_share",
    "entropy_control/dropped_share_negative",
    "entropy_control/mean_centered_discriminant",
)
ENTROPY_EDGES = (0.0, 0.01, 0.1, 0.5, 1.0, 2.0, 4.0, 12.0)
CENTERED_EDGES = (-1.0, -0.1, -0.03, -0.01, -1e-3, -1e-4, 0.0, 1e-4, 1e-3, 0.01, 0.03, 0.1, 1.0)
KINDS = ("digits", "word", "piece of a word", "other signs", "special")
POINTS = 400  # sampled tokens of a policy that the record keeps for a figure


@dataclass(frozen=True)
class ModelRun:
    """One GRPO run."""

    rule: str
    seed: int
    steps: int
    num_iterations: int = 1
    prompts: int = 4
    generations: int = 8
    learning_rate: float = 2e-5
    bf16: bool = True
    observe: tuple[str, ...] = ()
    held_out: int = 32  # held-out prompts for the trained policy; 0 measures none
    samples: int = 16  # completions of each
    batches: int = 0  # batches of the trained policy whose tokens are scored


@dataclass(frozen=True)
class SampledPolicy:
    """The untrained model, sampled on training prompts by one sampler and scored as the policy without truncation."""

    seed: int
    batches: int
    top_p: float = 1.0
    top_k: int = 0
    prompts: int = 4
    generations: int = 8
    held_out: int = 0
    samples: int = 16


@dataclass(frozen=True)
class CutInModel:
    """The tokens outside PPO's band while TRL trains the model with PPO's clipping."""

    seed: int
    steps: int
    iterations: int
    prompts: int = 4
    generations: int = 8
    learning_rate: float = 2e-5
    bf16: bool = True


def train(run: ModelRun) -> dict[str, Any]:
    """Train; ``curves`` by name with a value per step, ``observed`` shares by rule, and the trained policy."""
    from entropy_theory.records import read_lines
    from entropy_theory.training.run import train as train_with

    with tempfile.TemporaryDirectory() as folder:
        config = _configuration(run, Path(folder), rule=run.rule, steps=run.steps, observe=run.observe)
        train_with(config)
        lines = read_lines(config.out / "metrics.jsonl")
        policy = measure_policy(str(config.out / "model"), run)
    curves = {name.split("/")[-1]: [line.get(name) for line in lines] for name in COLUMNS}
    observed = {
        rule: [line[f"entropy_control/observed/{rule}/dropped_share"] for line in lines] for rule in _printed(run)
    }
    return {"curves": rounded(curves), "observed": rounded(observed), "policy": policy}


def _printed(run: ModelRun) -> list[str]:
    from entropy_theory.control import rule

    return [str(rule(observed)) for observed in run.observe]


def _configuration(run: ModelRun | CutInModel, out: Path, **settings: Any) -> Any:
    from entropy_theory.training.config import TrainConfig

    return TrainConfig(
        model=MODEL,
        task=TASK,
        num_iterations=run.num_iterations if isinstance(run, ModelRun) else run.iterations,
        prompts_per_step=run.prompts,
        generations=run.generations,
        max_completion_length=COMPLETION,
        learning_rate=run.learning_rate,
        bf16=run.bf16,
        save_every=10**6,
        seed=run.seed,
        out=out,
        **settings,
    )


def cut_tokens(task: CutInModel) -> dict[str, Any]:
    """Train with TRL's own loss and look at each batch before every update but its first."""
    from entropy_theory.bridge.trl import EntropyControlledGRPOConfig
    from entropy_theory.training.inputs import load_task, load_tokenizer, model_folder
    from entropy_theory.training.run import load_libraries, silence, trainer_arguments

    load_libraries()

    def run(kind: type[Any]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            config = _configuration(task, Path(folder), steps=task.steps)
            tokenizer = load_tokenizer(config)
            prompts, reward = load_task(config, tokenizer)
            arguments = trainer_arguments(config, 1) | {"save_strategy": "no"}
            trainer = kind(
                model=model_folder(config),
                reward_funcs=reward,
                args=EntropyControlledGRPOConfig(**arguments),
                train_dataset=prompts,
                processing_class=tokenizer,
            )
            silence(trainer)
            trainer.train()

    return cut_in_training(run, task.iterations).result()


# -- a policy that is sampled, not trained -----------------------------------------------------------------------------


def held_out(policy: Any, tokenizer: Any, run: ModelRun | SampledPolicy) -> dict[str, float]:
    """pass@1, pass@8 and distinct right answers on prompts that training never shows, as means over prompts."""
    from entropy_theory.testbed.sampling import sample_completions
    from entropy_theory.testbed.tasks import load_task, read_answer

    task = load_task(HELD_OUT, 8 * run.held_out, seed=10_000, chat=True)
    unseen = [row for row in range(8 * run.held_out) if _has_unseen_number(task.prompts[row])][: run.held_out]
    passed: dict[str, list[float]] = {"pass@1": [], "pass@8": [], "distinct": []}
    for first in range(0, len(unseen), 4):
        rows = unseen[first : first + 4]
        chats = [task.prompts[row]["prompt"] for row in rows]
        texts = sample_completions(policy, tokenizer, chats, COMPLETION, copies=run.samples).texts
        for place, row in enumerate(rows):
            answers = [read_answer(text) for text in texts[place * run.samples : (place + 1) * run.samples]]
            right = sum(task.verifier(row, answer) >= 1 for answer in answers)
            for k in (1, 8):
                passed[f"pass@{k}"].append(pass_at(k, right, run.samples))
            passed["distinct"].append(len(set(answers)))
    return {name: round(float(np.mean(values)), 5) for name, values in passed.items()}


def _has_unseen_number(row: dict[str, Any]) -> bool:
    return any(int(number) > LARGEST for number in re.findall(r"\d+", row["prompt"][0]["content"]))


def sample_policy(task: SampledPolicy) -> dict[str, Any]:
    """Measure the untrained model."""
    from entropy_theory.testbed.pretrained import resolve_model

    return {"policy": measure_policy(resolve_model(MODEL), task)}


def measure_policy(folder: str, task: ModelRun | SampledPolicy) -> dict[str, Any]:
    """Sample a policy, and score each token by the whole distribution.

    Returns:
        ``batches``: per batch n, Σ S, Σ S_c, Σ Var S, and the estimated bias of the token mean; without truncation
        also the tables of `Table`; ``held_out``: what `held_out` measures.
    """
    import torch

    from entropy_theory.testbed.sampling import load_policy

    policy, tokenizer = load_policy(folder)
    sampler = {"top_p": task.top_p, "top_k": task.top_k} if isinstance(task, SampledPolicy) else {}
    measured: dict[str, Any] = {}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(task.seed)
        if task.batches:
            measured = scored_batches(policy, tokenizer, task, sampler)
        return measured | ({"held_out": held_out(policy, tokenizer, task)} if task.held_out else {})


def scored_batches(
    policy: Any, tokenizer: Any, task: ModelRun | SampledPolicy, sampler: dict[str, Any]
) -> dict[str, Any]:
    """Sample batches and add up the scores of their tokens under the policy without truncation."""
    import torch

    from entropy_theory.dynamics.bank import policy_statistics
    from entropy_theory.testbed.sampling import sample_completions
    from entropy_theory.testbed.tasks import load_task

    prompts = load_task(TASK, task.batches * task.prompts, task.seed, chat=True).prompts
    table = Table(tokenizer, policy.config.vocab_size)
    rows: list[list[float]] = []
    for batch in range(task.batches):
        asked = prompts[batch * task.prompts : (batch + 1) * task.prompts]["prompt"]
        written = sample_completions(policy, tokenizer, asked, COMPLETION, copies=task.generations, **sampler)
        ids, mask, counts = written.ids, written.attention_mask, written.counts
        length = counts.shape[1]
        logits = policy(input_ids=ids, attention_mask=mask, logits_to_keep=length + 1).logits[:, :-1]
        sums, centered = torch.zeros(3, dtype=torch.float64), torch.zeros(len(ids), dtype=torch.float64)
        for sequence, kept in enumerate(counts):
            bank, tokens = policy_statistics(logits[sequence][kept]), ids[sequence, -length:][kept]
            scores = bank.at(tokens[:, None])
            parts = (scores.discriminant, scores.centered_discriminant, bank.discriminant_variance())
            sums += torch.stack([part.sum() for part in parts])
            centered[sequence] = scores.centered_discriminant.sum()
            table.see(bank, tokens, scores)
        lengths = counts.sum(1).double()
        # The token mean divides by a sampled length: its bias is −Cov(Σ S_c, L)/(B E[L]²) with B completions.
        bias = -float(torch.cov(torch.stack([centered, lengths]))[0, 1]) / (len(ids) * float(lengths.mean()) ** 2)
        rows.append([float(counts.sum()), *sums.tolist(), bias])
    truncated = sampler.get("top_p", 1.0) < 1 or sampler.get("top_k", 0) > 0
    return {"batches": rounded(rows, 7)} | ({} if truncated else table.result())


class Table:
    """How S and S_c lie over a real vocabulary, by the position's entropy and the kind of token."""

    def __init__(self, tokenizer: Any, vocab_size: int) -> None:
        import torch

        self._kinds = torch.tensor([kind_of(tokenizer, token) for token in range(vocab_size)])
        bins, kinds = len(ENTROPY_EDGES) - 1, len(KINDS)
        self._sampled = np.zeros((bins, kinds, 5))  # count, Σ p, Σ S, Σ S_c, number with S_c > 0
        self._whole = np.zeros((bins, kinds, 4))  # Σ p, Σ S, numbers with S > 0 and with S_c > 0, over positions
        self._positions = np.zeros((bins, 5))  # count, Σ H, Σ N, Σ (largest S), Σ (mass of tokens with S_c > 0)
        self._histogram = np.zeros((bins, len(CENTERED_EDGES) - 1))
        self._points: list[list[float]] = []

    def see(self, bank: Any, tokens: Any, scores: Any) -> None:
        """Take positions of one completion."""
        import torch

        entropy = bank.entropy.numpy()
        place = np.clip(np.digitize(entropy, ENTROPY_EDGES) - 1, 0, len(ENTROPY_EDGES) - 2)
        S, kinds = bank.discriminants(), self._kinds
        centered = S - bank.baseline[:, None]
        sums = [
            torch.zeros(len(entropy), len(KINDS), dtype=torch.float64).index_add_(1, kinds, column.double()).numpy()
            for column in (bank.probs, S, S > 0, centered > 0)
        ]
        np.add.at(self._whole, place, np.stack(sums, axis=-1))
        mass = (bank.probs * (centered > 0)).sum(-1)
        facts = (np.ones_like(entropy), entropy, bank.baseline.numpy(), S.max(-1).values.numpy(), mass.numpy())
        np.add.at(self._positions, place, np.stack(facts, axis=-1))
        sampled_kinds = kinds[tokens].numpy()
        p, own, own_centered = (
            values[:, 0].numpy()
            for values in (scores.log_probs.exp(), scores.discriminant, scores.centered_discriminant)
        )
        facts = (np.ones_like(p), p, own, own_centered, (own_centered > 0).astype(float))
        np.add.at(self._sampled, (place, sampled_kinds), np.stack(facts, axis=-1))
        edges = np.clip(np.digitize(own_centered, CENTERED_EDGES) - 1, 0, len(CENTERED_EDGES) - 2)
        np.add.at(self._histogram, (place, edges), 1)
        self._points += [list(map(float, point)) for point in zip(p, entropy, own_centered, sampled_kinds, strict=True)]

    def result(self) -> dict[str, Any]:
        """The tables as data; sums, so that tables of several policies add up."""
        every = -(-len(self._points) // POINTS)
        return {
            "sampled": rounded(self._sampled.tolist()),
            "vocabulary": rounded(self._whole.tolist()),
            "positions": rounded(self._positions.tolist()),
            "centered_histogram": self._histogram.tolist(),
            "points": rounded(self._points[::every], 4),
        }


def kind_of(tokenizer: Any, token: int) -> int:
    """The place in `KINDS` of a token of the vocabulary."""
    if token in tokenizer.all_special_ids:
        return KINDS.index("special")
    text = tokenizer.decode([token])
    if text.strip().isdecimal():
        return KINDS.index("digits")
    if not text.strip().isalpha():
        return KINDS.index("other signs")
    return KINDS.index("word" if text[0].isspace() else "piece of a word")
