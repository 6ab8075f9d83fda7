"""What a log does not say: taken from ids, from beside the log or from options where they are there, else stated."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from entropy_theory import cli
from entropy_theory.inspection.inspect import InspectConfig, Inspection, inspect
from entropy_theory.inspection.rollouts import read_rollouts
from entropy_theory.sampling import Sampling

TEMPLATE = (
    "{% for t in tools or [] %}<{{ t.name }}>{% endfor %}"
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}>{% if quiet is defined and quiet %}//{% endif %}{% endif %}"
)
WORDS = ("the sum", "is right", "so the answer", "of terms")


def jsonl(folder: Path, lines: list[dict[str, Any]]) -> Path:
    path = folder / "rollouts.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def log_of(folder: Path, **columns: list[Any]) -> Path:
    """A completion log as TRL writes it: one prompt, four completions."""
    rows = {"step": [1] * 4, "prompt": ["sum"] * 4, "completion": list(WORDS)} | columns
    pandas.DataFrame(rows).to_parquet(folder / "completions_00001.parquet")
    return folder


def opened(path: Path, model: Path, tmp_path: Path, **options: Any) -> Inspection:
    options = {"rule": ("clip-b(mu=0.5)",), "out": tmp_path / "page.html"} | options
    return inspect(InspectConfig(path, str(model), **options))


def standardised(rewards: Any) -> list[float]:
    rewards = np.array(rewards, dtype=float)
    return ((rewards - rewards.mean()) / (rewards.std(ddof=1) + 1e-4)).tolist()


# -- end tokens -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def several_ends(byte_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose generation configuration ends completions with three tokens, as Gemma's and Phi's do."""
    folder = tmp_path_factory.mktemp("several-ends")
    AutoTokenizer.from_pretrained(byte_model).save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(byte_model)
    model.generation_config.eos_token_id = [17, 90, 0]
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("end", ["x", [2.5]])
def test_end_tokens_that_are_no_ids(byte_model: Path, tmp_path: Path, end: Any) -> None:
    folder = shutil.copytree(byte_model, tmp_path / "model")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": end}))
    lines = [{"prompt": "sum", "completion": text, "reward": n % 2} for n, text in enumerate(WORDS)]
    with pytest.raises(ValueError, match="model: expected a generation configuration whose eos_token_id is an id"):
        opened(jsonl(tmp_path, lines), folder, tmp_path)


@pytest.mark.parametrize("budget", [1 << 28, 0], ids=["logits", "hidden"])
def test_of_several_end_tokens_the_likeliest_is_scored(
    several_ends: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, budget: int
) -> None:
    monkeypatch.setattr("entropy_theory.vocab.model_head.LOGITS_BUDGET", budget)
    lines = [{"prompt": "sum", "completion": text, "reward": n % 2} for n, text in enumerate(WORDS)]
    inspection = opened(jsonl(tmp_path, lines), several_ends, tmp_path)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(several_ends), AutoTokenizer.from_pretrained(several_ends)
    ends = []
    for row, text in enumerate(WORDS):
        ids = tokenizer("sum")["input_ids"] + tokenizer(text)["input_ids"]
        with torch.no_grad():
            log_p = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        ends.append(max((17, 90, 0), key=lambda token: float(log_p[token])))
        assert inspection.sequences[row].ids == (*tokenizer(text)["input_ids"], ends[-1])
        last = int(inspection.batch.completion_mask[row].sum()) - 1
        # float32 products in another order
        assert float(inspection.batch.log_probs[row, last]) == pytest.approx(float(log_p[ends[-1]]), abs=1e-4)
    assert set(ends) != {0}  # the tokenizer's alone would be another score
    (said,) = [a for a in inspection.assumptions if a.startswith("End tokens put back: ")]
    assert all(f"after {ends.count(end)}" in said for end in ends)
    assert "the likeliest of 3 end tokens" in said
    assert "No length limit is known" in said
    given = opened(jsonl(tmp_path, lines), several_ends, tmp_path, end_token_ids=(90,), max_completion_length=2)
    assert {sequence.ids[-1] for sequence in given.sequences if len(sequence.ids) < 2} <= {90}
    assert "get none" in next(a for a in given.assumptions if a.startswith("End tokens"))


def test_recorded_ids_are_taken_as_they_are(several_ends: Path, tmp_path: Path) -> None:
    ids = [[5, 6, 90], [7], [8, 9], [10, 17]]
    folder = log_of(tmp_path, right=[1.0, 0.0, 0.0, 1.0], completion_ids=ids, prompt_ids=[[3, 4]] * 4)
    inspection = opened(folder, several_ends, tmp_path)
    assert [list(sequence.ids) for sequence in inspection.sequences] == ids
    assert {sequence.prompt_ids for sequence in inspection.sequences} == {(3, 4)}
    assert inspection.assumptions[0] == "All 4 completions are read by their recorded token ids."


# -- prompts ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chat_model(byte_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat-model")
    tokenizer = AutoTokenizer.from_pretrained(byte_model)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    AutoModelForCausalLM.from_pretrained(byte_model).save_pretrained(folder)
    return folder


CHAT = [{"role": "user", "content": "2+2"}]


@pytest.mark.parametrize("how", ["log", "options"])
def test_the_runs_template_arguments_are_used(chat_model: Path, tmp_path: Path, how: str) -> None:
    path = log_of(tmp_path, prompt=[CHAT] * 4, right=[1.0, 0.0, 0.0, 1.0])
    tools = [{"name": "add"}]
    options: dict[str, Any] = {}
    if how == "log":
        Sampling(chat_template_kwargs={"quiet": True}, tools=tools, temperature=0.7).write(tmp_path)
    else:
        (tmp_path / "tools.json").write_text(json.dumps(tools))
        options = {"chat_template_kwargs": '{"quiet": true}', "tools": tmp_path / "tools.json", "temperature": 0.7}
    inspection = opened(path, chat_model, tmp_path, **options)
    tokenizer = AutoTokenizer.from_pretrained(chat_model)
    assert {tokenizer.decode(s.prompt_ids) for s in inspection.sequences} == {"<add>[user]2+2>//"}
    assert inspection.temperature == 0.7
    said = " ".join(inspection.assumptions)
    assert '4 prompts are written by the model\'s chat template with {"quiet": true}' in said
    assert "and 1 tools" in said


def test_missing_template_arguments_are_stated_in_both_places(
    chat_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    path = log_of(tmp_path, prompt=[CHAT] * 4, right=[1.0, 0.0, 0.0, 1.0])
    out = tmp_path / "page.html"
    assert cli.main(["inspect", str(path), "--model", str(chat_model), "--rule", "clip-b", "--out", str(out)]) == 0
    printed, page = capsys.readouterr().out, out.read_text()
    for text in (printed, page.replace("&#39;", "'")):
        assert "4 of 4 completions have no recorded token ids" in text
        assert "with no arguments (--chat-template-kwargs) and no tools (--tools)" in text
        assert "<eos> after 4" in text.replace("&lt;", "<").replace("&gt;", ">")
        assert "The temperature is 1, assumed." in text


def test_completions_of_several_messages_are_left_out_and_counted(chat_model: Path, tmp_path: Path) -> None:
    def said(text: str) -> list[dict[str, str]]:
        return [{"role": "assistant", "content": text}]

    with_tool = [*said("let me see"), {"role": "tool", "content": "4"}, *said("4")]
    lines = [
        {"prompt": CHAT, "completion": completion, "reward": n, "advantage": float(n)}
        for n, completion in enumerate([said("4"), with_tool, said("5"), with_tool])
    ]
    inspection = opened(jsonl(tmp_path, lines), chat_model, tmp_path)
    assert [item.reward for item in inspection.rollouts.items] == [0.0, 2.0]
    assert inspection.batch.advantages.tolist() == [0.0, 2.0]
    assert "Left out: 2 of 4 completions of several messages and without token ids." in inspection.warnings
    lines[1]["completion_ids"] = [5, 6, 7]
    assert len(opened(jsonl(tmp_path, lines), chat_model, tmp_path).sequences) == 3
    with pytest.raises(ValueError, match="line 1, completion: expected text or one assistant message, or completion"):
        read_rollouts(jsonl(tmp_path, [{"prompt": CHAT, "completion": with_tool, "reward": 1}]))


# -- texts that are other texts in tokens -----------------------------------------------------------------------------


def test_one_character_of_another_normal_form_does_not_refuse_the_file(byte_model: Path, tmp_path: Path) -> None:
    from tokenizers import normalizers

    tokenizer = AutoTokenizer.from_pretrained(byte_model)
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    tokenizer.save_pretrained(tmp_path / "nfc")
    texts = ["the sum", "10 k\u2126", "is e\u0301", "right"]  # the ohm sign, and an accent of its own
    lines = [{"prompt": "sum", "completion": text, "reward": n} for n, text in enumerate(texts)]
    inspection = opened(jsonl(tmp_path, lines), byte_model, tmp_path, tokenizer=str(tmp_path / "nfc"))
    assert [item.completion for item in inspection.rollouts.items] == ["the sum", "right"]
    # the advantages are those of the whole group
    assert inspection.batch.advantages.tolist() == pytest.approx([standardised(range(4))[n] for n in (0, 3)], abs=1e-6)
    warning = inspection.warnings[0]
    assert "2 of 4 completions whose text does not come back from its tokens" in warning
    assert "line 2, completion" in warning
    assert r"'10 k\u2126', which comes back as '10 k\u03a9'" in warning


# -- rewards ----------------------------------------------------------------------------------------------------------

RIGHT, LENGTH = [1.0, 0.0, -0.5, 2.0], [12.0, 13.0, 30.0, 7.0]


def rewards_of(path: Path, **options: Any) -> list[float | None]:
    return [item.reward for item in read_rollouts(path, **options).items]


def test_a_numeric_column_beside_the_reward_is_told_apart_by_the_advantages(tmp_path: Path) -> None:
    path = log_of(tmp_path, right=RIGHT, length=LENGTH, advantage=standardised(RIGHT))
    found = read_rollouts(path)
    assert [item.reward for item in found.items] == RIGHT
    assert (found.rewards.evidence, found.rewards.others) == ("advantages", ("length",))
    total = [a + b for a, b in zip(RIGHT, LENGTH, strict=True)]
    path = log_of(tmp_path, right=RIGHT, length=LENGTH, advantage=standardised(total))
    assert rewards_of(path) == total


def test_a_prompt_that_was_drawn_twice_is_two_groups(tmp_path: Path) -> None:
    columns = {"prompt": ["a", "a", "b", "b", "a", "a"], "completion": ["x"] * 6, "right": [1.0, 0, 0, 1, 5, 3]}
    advantage = [a for pair in ([1, 0], [0, 1], [5, 3]) for a in standardised(pair)]
    frame = pandas.DataFrame({"step": [1] * 6, **columns, "noise": [3.0, 1, 4, 1, 5, 9], "advantage": advantage})
    frame.to_parquet(tmp_path / "completions_00001.parquet")
    assert rewards_of(tmp_path) == [1.0, 0, 0, 1, 5, 3]


def test_weights_come_from_the_log_or_from_options_or_are_warned_of(byte_model: Path, tmp_path: Path) -> None:
    weighted = [2 * a - 0.1 * b for a, b in zip(RIGHT, LENGTH, strict=True)]
    path = log_of(tmp_path, right=RIGHT, length=LENGTH, advantage=standardised(weighted))
    inspection = opened(path, byte_model, tmp_path)
    assert "The recorded advantages are not those of the reward right + length" in inspection.warnings[0]
    given = {"rewards": ("right", "length"), "reward_weights": (2.0, -0.1)}
    assert rewards_of(path, **given) == pytest.approx(weighted)
    inspection = opened(path, byte_model, tmp_path, **given)
    assert not any("recorded advantages" in warning for warning in inspection.warnings)
    assert "The reward is 2 · right − 0.1 · length, as the log or an option says." in inspection.assumptions
    Sampling(reward_columns=["right", "length"], reward_weights=[2.0, -0.1]).write(tmp_path)
    assert rewards_of(path) == pytest.approx(weighted)
    with pytest.raises(ValueError, match=r"reward_weights: expected a finite number for each"):
        rewards_of(path, rewards=("right",), reward_weights=(1.0, 2.0))


# -- lines and files that break readers -------------------------------------------------------------------------------

GOOD = '{"prompt": "1", "completion": "2", "reward": 1}'


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (GOOD.replace("}", ', "truncated": "false"}'), "truncated: expected true or false, received 'false'"),
        (GOOD.replace("}", ', "truncated": 1}'), "truncated: expected true or false, received 1"),
        ('{"prompt": ' + "[" * 100_000 + "]" * 100_000 + "}", "expected a JSON object of Unicode text"),
        (GOOD.replace('"reward": 1', f'"reward": {2**70}'), "reward: expected a finite number"),
        (GOOD.replace('"reward": 1', f'"reward": 1{"0" * 400}'), "reward: expected a finite number"),
        (GOOD.replace("}", f', "completion_ids": [{2**64}]}}'), "completion_ids: expected a list of token ids"),
        (GOOD.replace('"2"', r'"\ud800"'), "expected a JSON object of Unicode text"),
        (GOOD.replace("}", ', "prompt_ids": []}'), "prompt_ids: expected a list of token ids, received []"),
    ],
    ids=["text for true", "1 for true", "nested", "2**70", "10**400", "large id", "half a character", "no ids"],
)
def test_a_hostile_line_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, message: str) -> None:
    path = tmp_path / "rollouts.jsonl"
    path.write_text(GOOD + "\n" + line + "\n")
    assert cli.main(["inspect", str(path), "--model", "none", "--out", str(tmp_path / "made" / "p.html")]) == 2
    said = capsys.readouterr().err
    assert f"{path}, line 2" in said
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "made").exists()


def test_columns_that_python_cannot_hold_are_not_read(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    far = pyarrow.array([10**17] * 4, pyarrow.timestamp("ms"))
    table = pyarrow.table({"prompt": ["a"] * 4, "completion": ["b"] * 4, "right": RIGHT, "when": far})
    pyarrow.parquet.write_table(table, tmp_path / "log.parquet")
    assert rewards_of(tmp_path / "log.parquet") == RIGHT
