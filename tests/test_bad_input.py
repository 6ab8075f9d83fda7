"""Bad arguments and bad files over all commands: a status, one line that names what is wrong, and nothing left behind.

The table is generated: every option with values that no command can use, and every kind of file that a command reads,
broken in every way that a copy, a full disk, an editor or another program breaks files. Seeded, and slow as a whole.
"""

from __future__ import annotations

import json
import math
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from entropy_theory import cli

pytest.importorskip("trl", reason="needs the extra 'train'")
pytestmark = pytest.mark.slow

BATCH = Path(__file__).parent / "control" / "grpo_batch.safetensors"
SMALL_RUN = ["--steps", "2", "--prompts-per-step", "2", "--generations", "2", "--max-completion-length", "4"]
FLOATS = ("nan", "inf", "-inf", "-1", "x", "", "1e999")
COUNTS = ("0", "-3", "2.5", "x", "", "99999999999999999999", "1e3")


@dataclass(frozen=True)
class Place:
    """Where a case may write, and good inputs to spoil."""

    folder: Path
    model: Path
    rollouts: Path
    parquet: Path
    prompts: Path
    run: Path
    simulation: Path

    def model_copy(self) -> Path:
        return Path(shutil.copytree(self.model, self.folder / "model"))


Case = Callable[[Place], list[str]]


# -- arguments --------------------------------------------------------------------------------------------------------

RULES = (
    "clip-bb",
    "clip-b(",
    "clip-b(mu=x)",
    "clip-b(mu=nan)",
    "|",
    "",
    "clip-b(mu=1)|",
    "__import__('os')",
    "clip-b(mu=[1])",
)
OPTIONS: dict[str, dict[str, tuple[str, ...]]] = {
    "verify": {"--only": ("theorem-9.9", ""), "--out": ("\0",)},
    "simulate toy": {
        "--steps": COUNTS,
        "--policies": COUNTS,
        "--vocab-size": ("1", *COUNTS),
        "--step-size": FLOATS,
        "--rule": RULES[:4],
        "--optimizer": ("lion",),
        "--dtype": ("float8",),
    },
    "simulate vocab": {"--vocab-size": ("1", "x"), "--policies": ("0",), "--seed": ("-1", "x")},
    "lens": {"--rules": RULES[:7], "--step-size": FLOATS, "--resamples": COUNTS[:5], "--seed": ("x", "1.5")},
    "demo": {"--steps": COUNTS, "--seeds": ("", "x"), "--processes": ("0", "x")},
    "train": {
        "--rule": RULES,
        "--observe": RULES[:3],
        "--steps": COUNTS,
        "--prompts-per-step": ("0", "4096"),
        "--generations": ("1", "0", "-2", "x"),
        "--gradient-accumulation": ("0", "7"),
        "--num-iterations": COUNTS[:4],
        "--max-completion-length": ("0", "-1", "x"),
        "--learning-rate": FLOATS,
        "--temperature": ("0", *FLOATS),
        "--beta": FLOATS,
        "--loss-type": ("soft", ""),
        "--scoring": ("twice",),
        "--save-every": ("0", "x"),
        "--realised-every": ("-1",),
        "--influence-every": ("-1", "1", "x"),
        "--save-batches": ("-1",),
        "--seed": ("-1", "x", "99999999999999999999"),
        "--dataset-split": (),
        "--model": ("no/such-model", "", "/dev/null"),
        "--report-to": ("nowhere",),
    },
    "audit": {
        "--arms": ("rmsprop", ""),
        "--at": ("0", "-1", "x"),
        "--seeds": ("x", "-1"),
        "--rule": ("ppo-clip", "entropy-bonus", "clip-x"),
        "--positions": ("0", "x"),
        "--resamples": ("0",),
        "--sgd-learning-rate": FLOATS,
        "--precision": ("float16",),
        "--model": ("no/such-model",),
    },
    "inspect": {
        "--rule": RULES[:4],
        "--temperature": ("0", *FLOATS),
        "--scale-rewards": ("row",),
        "--rewards": ("right",),
        "--reward-weights": ("nan",),
        "--step": ("3", "x"),
        "--end-token-ids": ("-1", "99999999"),
        "--max-completion-length": ("0", "x"),
        "--chat-template-kwargs": ("{", "[1]", "1"),
        "--tools": ("no-such.json",),
        "--batch-tokens": COUNTS[:4],
        "--dtype": ("int8",),
        "--max-completions": ("0",),
        "--tokenizer": ("no/such",),
        "--seed": ("-1", "x"),
    },
}


def base(command: str, place: Place) -> list[str]:
    """A command that would succeed, and quickly."""
    words = {
        "verify": ["--quick", "--only", "theorem-3.2"],
        "simulate toy": ["--policies", "3", "--vocab-size", "4", "--steps", "2"],
        "simulate vocab": ["--policies", "2", "--vocab-size", "4", "--steps", "2"],
        "lens": [str(BATCH), "--resamples", "5"],
        "demo": ["--steps", "1", "--seeds", "0"],
        "train": ["--model", str(place.model), *SMALL_RUN],
        "audit": ["--model", str(place.model), "--at", "1", "--seeds", "0", *SMALL_RUN[2:]],
        "inspect": [str(place.rollouts), "--model", str(place.model)],
    }[command]
    out = place.folder / "made" / ("page.html" if command == "inspect" else "run")
    return [*command.split(), *words, "--out", str(out)]


def with_option(command: str, option: str, value: str) -> Case:
    return lambda place: [*base(command, place), option, value]


def arguments() -> Iterator[tuple[str, Case]]:
    for command, options in OPTIONS.items():
        for option, values in options.items():
            for value in values:
                if "\0" not in value:  # no argument of a process can hold one
                    yield f"{command} {option} {value or 'EMPTY'}", with_option(command, option, value)
        yield f"{command} --no-such-option", with_option(command, "--no-such-option", "1")


# -- files ------------------------------------------------------------------------------------------------------------


def cut(path: Path, draws: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: draws.randrange(1, max(2, path.stat().st_size // 2))])


def emptied(path: Path, draws: random.Random) -> None:
    path.write_bytes(b"")


def garbled(path: Path, draws: random.Random) -> None:
    path.write_bytes(draws.randbytes(300))


def made_a_folder(path: Path, draws: random.Random) -> None:
    path.unlink()
    path.mkdir()


def made_a_loop(path: Path, draws: random.Random) -> None:
    path.unlink()
    path.symlink_to(path.name)


DAMAGES = (cut, emptied, garbled, made_a_folder, made_a_loop)


def damaged(
    name: str, damage: Callable[[Path, random.Random], None], case: Callable[[Place], tuple[Path, list[str]]]
) -> Case:
    def words(place: Place) -> list[str]:
        path, command = case(place)
        damage(path, random.Random(name))
        return command

    return words


def of_model(file: str, command: str) -> Callable[[Place], tuple[Path, list[str]]]:
    def case(place: Place) -> tuple[Path, list[str]]:
        model = place.model_copy()
        return model / file, [str(model) if word == str(place.model) else word for word in base(command, place)]

    return case


def of_copy(
    original: str, name: str, command: Callable[[Place, Path], list[str]]
) -> Callable[[Place], tuple[Path, list[str]]]:
    def case(place: Place) -> tuple[Path, list[str]]:
        path = Path(shutil.copy(getattr(place, original) if original != "batch" else BATCH, place.folder / name))
        return path, command(place, path)

    return case


def trained_on(place: Place, path: Path) -> list[str]:
    reward = ["--reward", "entropy_theory.testbed.arithmetic:reward"]
    return [*base("train", place), "--dataset", str(path), *reward]


def inspected(place: Place, path: Path) -> list[str]:
    return [str(path) if word == str(place.rollouts) else word for word in base("inspect", place)]


def files() -> Iterator[tuple[str, Case]]:
    cases = {
        "lens batch": of_copy(
            "batch", "b.safetensors", lambda place, path: ["lens", str(path), *base("lens", place)[2:]]
        ),
        "inspect jsonl": of_copy("rollouts", "r.jsonl", inspected),
        "inspect parquet": of_copy("parquet", "r.parquet", inspected),
        "train jsonl": of_copy("prompts", "p.jsonl", trained_on),
        "train parquet": of_copy("parquet", "p.parquet", trained_on),
        "train weights": of_model("model.safetensors", "train"),
        "train config": of_model("config.json", "train"),
        "train tokenizer": of_model("tokenizer.json", "train"),
        "audit weights": of_model("model.safetensors", "audit"),
        "inspect weights": of_model("model.safetensors", "inspect"),
        "inspect config": of_model("config.json", "inspect"),
        "inspect tokenizer": of_model("tokenizer.json", "inspect"),
    }
    for name, case in cases.items():
        for damage in DAMAGES:
            yield f"{name} {damage.__name__}", damaged(f"{name} {damage.__name__}", damage, case)


JSON = (
    "[]",
    "{}",
    "null",
    '{"architectures": 3}',
    "{" * 5000,
    '"text"',
    '{"model_type": ["llama"]}',
    '{"vocab_size": -1}',
)
DATASETS = {
    "no prompt": '{"question": "1"}\n',
    "no rows": "\n",
    "a number for a prompt": '{"prompt": 1, "expression": "1"}\n{"prompt": 2, "expression": "2"}\n',
    "mixed columns": '{"prompt": "1=", "expression": "1"}\n{"prompt": ["x"], "expression": {"a": 1}}\n',
    "a column completions": '{"prompt": "1=", "expression": "1", "completions": "x"}\n' * 4,
    "no object": "[1, 2]\n",
    "one row": '{"prompt": "1=", "expression": "1"}\n',
    "a chat without a template": '{"prompt": [{"role": "user", "content": "1"}], "expression": "1"}\n' * 4,
    "an empty chat": '{"prompt": [], "expression": "1"}\n' * 4,
    "a chat of texts": '{"prompt": ["1"], "expression": "1"}\n' * 4,
}
REWARD_MODULES = {
    "syntax": "def reward(:\n",
    "raises": "1/0\n",
    "exits": "import sys\nsys.exit(0)\n",
    "no function": "x = 1\n",
    "not callable": "reward = 3\n",
    "circular": "from spoiled_reward import reward\n",
}
REWARDS = {  # what a reward function returns for four completions
    "a dict": "{c: 1.0 for c in completions}",
    "a column": "__import__('numpy').ones((len(completions), 1))",
    "a tensor column": "__import__('torch').ones(len(completions), 1)",
    "huge": "[1e300] * len(completions)",
    "beyond floats": "[10**400] * len(completions)",
    "texts": "['1.0'] * len(completions)",
    "a text": "'1' * len(completions)",
    "a scalar": "1.0",
    "nothing": "None",
    "a generator": "(1.0 for c in completions)",
    "a set": "{1.0}",
    "nan": "[float('nan')] * len(completions)",
    "an infinity": "[1.0] * (len(completions) - 1) + [float('-inf')]",
    "complex": "[1j] * len(completions)",
    "too few": "[1.0]",
    "too many": "[1.0] * (len(completions) + 1)",
    "lists": "[[1.0]] * len(completions)",
    "raises": "{}['grader']",
    "exits": "__import__('sys').exit(0)",
}
ROLLOUTS = (
    "{",
    "[]",
    "1",
    '{"prompt": "1"}',
    '{"prompt": 1, "completion": "1", "reward": 1}',
    '{"prompt": "1", "completion": "1", "reward": "1"}',
    '{"prompt": "1", "completion": "1", "reward": 1e400}',
    '{"prompt": "1", "completion": {"a": 1}, "reward": 1}',
    '{"prompt": "1", "completion": "1", "reward": 1, "completion_ids": "12"}',
    '{"prompt": "1", "completion": "1", "reward": 1, "completion_ids": [99999999]}',
    '{"prompt": "1", "completion": "1", "reward": 1, "prompt_ids": [1.5]}',
    '{"prompt": "1", "completion": "1", "reward": 1, "truncated": 0}',
    '{"prompt": "1", "completion": "1", "reward": 1, "advantage": "high"}',
    '{"prompt": [{"content": "x"}], "completion": "1", "reward": 1}',
    '{"prompt": "\\ud800", "completion": "1", "reward": 1}',
)


def written(name: str, text: str, command: Callable[[Place, Path], list[str]]) -> Case:
    def words(place: Place) -> list[str]:
        path = place.folder / name
        path.write_text(text)
        return command(place, path)

    return words


def beside_it(place: Place, path: Path) -> list[str]:
    return inspected(place, Path(shutil.copy(place.rollouts, path.parent / "r.jsonl")))


def of_reward(body: str) -> Case:
    def words(place: Place) -> list[str]:
        (place.folder / "spoiled_reward.py").write_text(body)
        return [*base("train", place), "--dataset", str(place.prompts), "--reward", "spoiled_reward:reward"]

    return words


def of_json(file: str, text: str, command: str) -> Case:
    def words(place: Place) -> list[str]:
        path, words = of_model(file, command)(place)
        path.write_text(text)
        return words

    return words


def of_out(original: str, file: str, text: str) -> Case:
    """A folder of an earlier run in which a file holds something else."""

    def words(place: Place) -> list[str]:
        out = shutil.copytree(getattr(place, original), place.folder / "earlier")
        assert (out / file).exists(), file
        (out / file).write_text(text)
        words = {
            "run": ["train", "--model", str(place.model), *SMALL_RUN],
            "simulation": ["simulate", "toy", "--policies", "3", "--vocab-size", "4", "--steps", "2"],
        }[original]
        return [*words, "--out", str(out)]

    return words


def not_a_number(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: torch.full_like(values, math.nan) for name, values in weights.items()}


def of_another_shape(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: values[..., :-1].contiguous() for name, values in weights.items()}


def half_of_them(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return dict(list(weights.items())[::2])


def of_weights(command: str, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Case:
    def words(place: Place) -> list[str]:
        path, words = of_model("model.safetensors", command)(place)
        save_file(change(load_file(path)), path, metadata={"format": "pt"})
        return words

    return words


def of_chat_template(text: str, command: str) -> Case:
    """A model whose chat template fails, given chats."""

    def words(place: Place) -> list[str]:
        path, words = of_model("chat_template.jinja", command)(place)
        path.write_text(text)
        chat = {"prompt": [{"role": "user", "content": "1"}], "expression": "1", "completion": "1", "reward": 1}
        lines = place.folder / "chats.jsonl"
        lines.write_text((json.dumps(chat) + "\n") * 4)
        if command == "inspect":
            return [str(lines) if word == str(place.rollouts) else word for word in words]
        return [*words, "--dataset", str(lines), "--reward", "entropy_theory.testbed.arithmetic:reward"]

    return words


def of_scores(place: Place) -> list[str]:
    """Kept statistics of an inspection that somebody changed."""
    words = [*base("inspect", place), "--scores", str(place.folder / "scores")]
    assert cli.main([*words[:-3], str(place.folder / "first.csv"), *words[-2:]]) == 0
    (part,) = (place.folder / "scores").rglob("*.safetensors")
    content = bytearray(part.read_bytes())
    content[-5] ^= 16
    part.write_bytes(content)
    return words


def contents() -> Iterator[tuple[str, Case]]:
    for number, text in enumerate(JSON):
        for command in ("train", "inspect"):
            yield f"{command} config.json {number}", of_json("config.json", text, command)
        yield f"train tokenizer.json {number}", of_json("tokenizer.json", text, "train")
    for name, text in DATASETS.items():
        yield f"train dataset, {name}", written("p.jsonl", text, trained_on)
    yield "train dataset, another ending", written("p.txt", "1=", trained_on)
    yield "train dataset, broken csv", written("p.csv", 'prompt\n"1', trained_on)
    yield "train dataset split", lambda place: [*trained_on(place, place.prompts), "--dataset-split", "nope"]
    for name, body in REWARD_MODULES.items():
        yield f"train reward module, {name}", of_reward(body)
    for name, expression in REWARDS.items():
        yield f"train reward, {name}", of_reward(f"def reward(completions, **_):\n    return {expression}\n")
    for command in ("train", "audit", "inspect"):
        for change in (not_a_number, of_another_shape, half_of_them):
            yield f"{command} weights, {change.__name__}", of_weights(command, change)
    for command in ("train", "inspect"):
        for text in ("{{ raise_exception('no') }}", "{% for", "{{ messages.nothing.at_all }}"):
            yield f"{command} chat template {text}", of_chat_template(text, command)
    yield "inspect scores", of_scores
    yield (
        "inspect tools",
        written("tools.json", "{}", lambda place, path: [*base("inspect", place), "--tools", str(path)]),
    )
    for text in ("[]", '{"temperature": "hot"}', '{"reward_weights": 3}', '{"unknown": 1}', "x"):
        yield f"inspect sampling.json {text}", written("sampling.json", text, beside_it)
    for number, line in enumerate(ROLLOUTS):
        yield f"inspect line {number}", written("r.jsonl", line + "\n", inspected)
    for file, text in (("config.json", "[]"), ("config.json", "{}"), ("config.json", "x"), ("result.json", "[1]")):
        yield f"train in a folder whose {file} is {text}", of_out("run", file, text)
        yield f"simulate in a folder whose {file} is {text}", of_out("simulation", file, text)


CASES = dict([*arguments(), *files(), *contents()])


def test_the_table_is_large_enough() -> None:
    assert len(CASES) >= 150
    assert all(any(case.startswith(name) for case in CASES) for name in cli.COMMANDS)


@pytest.fixture(scope="module")
def good(tiny_decoder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Inputs that every command takes: what is spoiled is what is refused."""
    import pandas

    folder = tmp_path_factory.mktemp("good")
    lines = [{"prompt": "17=", "completion": f"9+0+1+{n}", "reward": n % 2} for n in range(4)]
    (folder / "r.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    pandas.DataFrame({"expression": ["1"] * 4, **pandas.DataFrame(lines)}).to_parquet(folder / "r.parquet")
    prompts = [{"prompt": f"{n}+1=", "expression": f"{n}+1"} for n in range(4)]
    (folder / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in prompts))
    assert cli.main(["train", "--model", str(tiny_decoder), *SMALL_RUN, "--out", str(folder / "run")]) == 0
    toy = ["--policies", "3", "--vocab-size", "4", "--steps", "2"]
    assert cli.main(["simulate", "toy", *toy, "--out", str(folder / "simulation")]) == 0
    return {
        "model": tiny_decoder,
        "rollouts": folder / "r.jsonl",
        "parquet": folder / "r.parquet",
        "prompts": folder / "p.jsonl",
        "run": folder / "run",
        "simulation": folder / "simulation",
    }


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.replace(" ", "-"))
def test_bad_input(
    case: str, good: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr("entropy_theory.testbed.decoder.warm_up", lambda *_: pytest.fail("work began"))
    sys.modules.pop("spoiled_reward", None)
    place = Place(folder=tmp_path, **good)
    words = CASES[case](place)
    before = {path: path.lstat().st_mtime_ns for path in tmp_path.rglob("*")}
    capfd.readouterr()
    status = cli.main(words)
    said = capfd.readouterr().err
    assert status in (1, 2), said
    assert said.startswith("entropy-theory: "), said
    assert said.count("\n") == 1, said
    assert "Traceback" not in said
    assert "--debug shows where" not in said  # that is for what nobody foresaw
    assert len(said) < 1000
    began = status == 1 and (tmp_path / "made").exists()  # a run that broke off keeps its folder
    if not began:
        after = {path for path in tmp_path.rglob("*") if path.suffix != ".pyc" and path.name != "__pycache__"}
        assert after <= set(before)
        assert all(path.lstat().st_mtime_ns == before[path] for path in after if path.is_file())
