"""Recorded rollouts: what is read, refused, compared, cut into tokens and scored."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from entropy_theory import cli
from entropy_theory.inspection.rollouts import Rollouts, advantages_of, read_rollouts
from entropy_theory.inspection.scoring import load_policy, score
from entropy_theory.inspection.tokens import Tokenised, TokenOptions, tokenise
from entropy_theory.testbed import decoder
from entropy_theory.vocab import model_head, token_statistics

LINES: list[dict[str, Any]] = [
    {"prompt": "17=", "completion": "9+0+1+7", "reward": 1.0},
    {"prompt": "17=", "completion": "9+0+1+6", "reward": 0},
    {"prompt": "8=", "completion": "2+2", "reward": 0.5},
    {"prompt": "17=", "completion": "", "reward": 0},
    {"prompt": "8=", "completion": "2+2+2+2+2+2", "reward": 1},
]


def written(folder: Path, lines: list[Any], name: str = "rollouts.jsonl") -> Path:
    path = folder / name
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def rollouts(tmp_path_factory: pytest.TempPathFactory) -> Rollouts:
    return read_rollouts(written(tmp_path_factory.mktemp("rollouts"), LINES))


# -- reading ----------------------------------------------------------------------------------------------------------


def test_equal_prompts_make_a_group(rollouts: Rollouts) -> None:
    assert rollouts.grouped_by == "prompt"
    assert rollouts.group_ids.tolist() == [0, 0, 1, 0, 1]
    assert [item.reward for item in rollouts.items] == [1.0, 0.0, 0.5, 0.0, 1.0]


def test_a_recorded_group_comes_first(tmp_path: Path) -> None:
    lines = [{**line, "group": group} for line, group in zip(LINES, [4, 4, 4, 2, 2], strict=True)]
    found = read_rollouts(written(tmp_path, lines))
    assert found.grouped_by == "group"
    assert found.group_ids.tolist() == [0, 0, 0, 1, 1]


def test_chats_are_read_as_trl_logs_them(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "17=?"}]
    line = {"prompt": chat, "completion": [{"role": "assistant", "content": "9+8"}], "reward": 1}
    item = read_rollouts(written(tmp_path, [line])).items[0]
    assert (item.prompt, item.completion) == (chat, "9+8")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([LINES[0], '{"prompt": "1=", "completion'], "rollouts.jsonl, line 2: expected a JSON object"),
        ([LINES[0], "[1, 2]"], "line 2: expected a JSON object, received list"),
        ([LINES[0], "", {"prompt": "1=", "completion": "1"}], "line 3: expected the fields .*, received no reward"),
        ([{"reward": 1}], "received no prompt and no completion"),
        ([{**LINES[0], "reward": None}], "line 1, reward: expected a finite number, received None"),
        ([{**LINES[0], "reward": True}], "line 1, reward: expected a finite number, received True"),
        (['{"prompt": "1=", "completion": "1", "reward": NaN}'], "line 1, reward: expected a finite number"),
        ([{**LINES[0], "completion": 7}], "line 1, completion: expected text or one assistant message, received 7"),
        ([{**LINES[0], "prompt": []}], "line 1, prompt: expected text or a list of chat messages"),
        ([{**LINES[0], "completion_ids": [1, -2]}], "completion_ids: expected a list of token ids"),
        ([{**LINES[0], "advantage": 1.0}, LINES[1]], "line 2: expected an advantage, as other lines have"),
        ([], "expected at least one rollout, received .*rollouts.jsonl with none"),
    ],
    ids=lambda value: value[-30:] if isinstance(value, str) else "",
)
def test_broken_lines_are_named(tmp_path: Path, lines: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_rollouts(written(tmp_path, lines))


# -- advantages -------------------------------------------------------------------------------------------------------


def test_advantages_are_those_of_a_group(rollouts: Rollouts) -> None:
    """By hand: rewards 1, 0, 0 have mean 1/3 and sample deviation √(1/3); 0.5 and 1 have √(1/8)."""
    found, recorded = advantages_of(rollouts)
    s, t = 3**-0.5 + 1e-4, 8**-0.5 + 1e-4
    np.testing.assert_allclose(found, [2 / 3 / s, -1 / 3 / s, -0.25 / t, -1 / 3 / s, 0.25 / t], rtol=1e-12)
    assert not recorded
    np.testing.assert_allclose(advantages_of(rollouts, "none")[0], [2 / 3, -1 / 3, -0.25, -1 / 3, 0.25], rtol=1e-12)
    sigma = np.std([1, 0, 0.5, 0, 1], ddof=1) + 1e-4
    np.testing.assert_allclose(advantages_of(rollouts, "batch")[0] * sigma, advantages_of(rollouts, "none")[0])


def test_recorded_advantages_are_kept(rollouts: Rollouts) -> None:
    items = tuple(replace(item, advantage=float(n)) for n, item in enumerate(rollouts.items))
    found, recorded = advantages_of(replace(rollouts, items=items))
    assert recorded
    assert found.tolist() == [0, 1, 2, 3, 4]


def test_nothing_to_compare_is_said(rollouts: Rollouts) -> None:
    with pytest.raises(ValueError, match="groups of at least two completions"):
        advantages_of(replace(rollouts, items=(rollouts.items[0], rollouts.items[2])))


def test_a_rollout_alone_in_its_group_gets_nothing(rollouts: Rollouts) -> None:
    items = (*rollouts.items[:2], rollouts.items[2])
    assert advantages_of(replace(rollouts, items=items))[0][2] == 0.0


# -- tokens -----------------------------------------------------------------------------------------------------------


def test_the_end_token_is_put_back(rollouts: Rollouts, byte_model: Path) -> None:
    policy = load_policy(str(byte_model))
    (end,) = policy.end_token_ids
    written = tokenise(rollouts, policy.tokenizer, TokenOptions((end,)))
    whole = written.sequences
    assert all(sequence.ids[-1] == end and sequence.pieces[-1] == "<eos>" for sequence in whole)
    assert (written.retokenised, written.ended, written.limited) == (5, 5, 0)
    assert policy.tokenizer.decode(whole[0].ids[:-1]) == "9+0+1+7"
    bare = tokenise(rollouts, policy.tokenizer).sequences
    assert [sequence.ids for sequence in bare] == [sequence.ids[:-1] for sequence in whole]
    limit = len(bare[0].ids)  # as many tokens as the completion has without its end
    written = tokenise(rollouts, policy.tokenizer, TokenOptions((end,), limit))
    assert written.sequences[0].ids[-1] != end
    assert written.limited >= 1
    cut = replace(rollouts, items=(replace(rollouts.items[0], truncated=True),))
    assert tokenise(cut, policy.tokenizer, TokenOptions((end,))).sequences[0].ids == bare[0].ids


def test_pieces_are_the_text(rollouts: Rollouts, byte_model: Path) -> None:
    """Also where one character takes several tokens."""
    tokenizer = load_policy(str(byte_model)).tokenizer
    text = "the sum🙂 is  Ω\n\tright </script>"
    item = replace(rollouts.items[0], completion=text)
    sequence = tokenise(replace(rollouts, items=(item,)), tokenizer).sequences[0]
    assert "".join(sequence.pieces) == text
    assert len(sequence.pieces) == len(sequence.ids)
    assert "" in sequence.pieces
    by_ids = replace(rollouts, items=(replace(item, completion_ids=sequence.ids),))
    recorded = tokenise(by_ids, tokenizer, TokenOptions((tokenizer.eos_token_id,))).sequences[0]
    assert recorded.ids == sequence.ids  # taken as they are, no end token added


def test_a_text_that_does_not_come_back_is_left_out_or_refused(rollouts: Rollouts, tiny_decoder: Path) -> None:
    tokenizer = load_policy(str(tiny_decoder)).tokenizer
    item = replace(rollouts.items[0], completion="9+0+x")
    with pytest.raises(
        ValueError, match=r"line 1, completion: expected text that the tokenizer gives back .* '9\+0\+x'"
    ):
        tokenise(replace(rollouts, items=(item,)), tokenizer)
    written = tokenise(replace(rollouts, items=(rollouts.items[1], item, rollouts.items[2])), tokenizer)
    assert written.rows == (0, 2)
    assert [len(s.ids) for s in written.sequences] == [7, 3]
    assert written.rollouts.left_out[0].startswith("1 of 3 completions whose text does not come back")
    chat = replace(item, prompt=[{"role": "user", "content": "1"}], completion="1")
    with pytest.raises(ValueError, match="no chat template"):
        tokenise(replace(rollouts, items=(chat,)), tokenizer)
    empty = replace(item, prompt="", completion="1")
    tokenizer.bos_token = None  # a prompt without tokens begins with it where there is one
    with pytest.raises(ValueError, match="prompt: expected at least one token"):
        tokenise(replace(rollouts, items=(empty,)), tokenizer)


def test_chats_go_through_the_template_and_empty_prompts_begin_somewhere(rollouts: Rollouts, byte_model: Path) -> None:
    tokenizer = load_policy(str(byte_model)).tokenizer
    tokenizer.chat_template = (
        "{% for t in tools or [] %}<{{ t.name }}>{% endfor %}"
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}>{% if thinking is defined and not thinking %}//{% endif %}{% endif %}"
    )
    chat = replace(rollouts, items=(replace(rollouts.items[0], prompt=[{"role": "user", "content": "17=?"}]),))
    for options, expected in (
        (TokenOptions(), "[user]17=?>"),
        (TokenOptions(chat_template_kwargs={"thinking": False}), "[user]17=?>//"),
        (TokenOptions(tools=[{"name": "add"}]), "<add>[user]17=?>"),
    ):
        written = tokenise(chat, tokenizer, options)
        assert tokenizer.decode(written.sequences[0].prompt_ids) == expected
        assert written.chats == 1
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(ValueError, match=r"line 1, prompt: expected messages that the model's chat template can write"):
        tokenise(chat, tokenizer)
    tokenizer.bos_token = "<eos>"
    empty = replace(rollouts, items=(replace(rollouts.items[0], prompt=""),))
    assert tokenise(empty, tokenizer).sequences[0].prompt_ids == (tokenizer.bos_token_id,)


def test_several_reward_functions_are_added(tmp_path: Path) -> None:
    """As TRL logs them: NaN where a function did not apply, and other columns that are not numbers."""
    import pandas

    nan = float("nan")
    rows = {"step": [3, 3, 3], "prompt": ["a", "a", "a"], "completion": ["b", "c", "d"]}
    rows |= {"right": [1.0, 0.0, nan], "short": [0.5, nan, nan], "note": ["x", "y", "z"], "advantage": [1.0, -1.0, 0.0]}
    (tmp_path / "completions").mkdir()
    pandas.DataFrame(rows).to_parquet(tmp_path / "completions" / "completions_00003.parquet")
    found = read_rollouts(tmp_path)
    assert found.rewards.names == ("right", "short")
    assert [item.reward for item in found.items] == [1.5, 0.0, None]
    assert [item.reward for item in read_rollouts(tmp_path, rewards=["short"]).items] == [0.5, None, None]
    with pytest.raises(ValueError, match=r"rewards: expected numeric columns of .*, received note"):
        read_rollouts(tmp_path, rewards=["note"])
    with pytest.raises(ValueError, match="step: expected one of the logged steps 3 to 3, received 4"):
        read_rollouts(tmp_path, step=4)
    (tmp_path / "broken.parquet").write_text("no parquet")
    with pytest.raises(ValueError, match="rollouts: expected a parquet file"):
        read_rollouts(tmp_path / "broken.parquet")


# -- scoring ----------------------------------------------------------------------------------------------------------


def alone(policy: Any, one: Tokenised, temperature: float) -> Any:
    """The statistics of one sequence by itself, without padding, from the model's own logits."""
    with torch.no_grad():
        logits = policy.model(input_ids=torch.tensor([one.prompt_ids + one.ids])).logits
    start = len(one.prompt_ids) - 1
    tokens = torch.tensor(one.ids, dtype=torch.long)
    return token_statistics(logits[0, start : start + len(one.ids)], tokens, temperature=temperature)


@pytest.mark.parametrize("how", ["logits", "hidden"])
def test_scores_are_those_of_each_sequence_alone(
    rollouts: Rollouts, byte_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    policy = load_policy(str(byte_model))
    assert policy.layer is not None
    if how == "hidden":
        monkeypatch.setattr(model_head, "LOGITS_BUDGET", 0)
    sequences = tokenise(rollouts, policy.tokenizer).sequences
    for bound in (1, 30, 8192):
        found, _ = score(policy, sequences, tmp_path, temperature=0.7, batch_tokens=bound)
        start = 0
        for one in sequences:
            expected = alone(policy, one, 0.7)
            for name in ("log_probs", "entropy", "baseline", "centered_discriminant"):
                # float32 products in another order, through one layer: some last places of logits of size 10
                np.testing.assert_allclose(
                    found[name][start : start + len(one.ids)], getattr(expected, name).numpy(), rtol=2e-4, atol=2e-5
                )
            start += len(one.ids)
        assert start == len(found["log_probs"])


def test_positions_count_from_the_first_token(rollouts: Rollouts, byte_model: Path, tmp_path: Path) -> None:
    """A model with absolute positions would see padding on the left."""
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    tokenizer = AutoTokenizer.from_pretrained(byte_model)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=40, initializer_range=0.3
    )
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    policy = load_policy(str(tmp_path / "gpt2"))
    sequences = tokenise(rollouts, policy.tokenizer).sequences
    found, _ = score(policy, sequences, tmp_path / "scores")
    expected = np.concatenate([alone(policy, one, 1.0).log_probs.numpy() for one in sequences])
    np.testing.assert_allclose(found["log_probs"], expected, rtol=2e-4, atol=2e-5)
    with pytest.raises(ValueError, match="rollout 1: expected at most 40 tokens, the model's positions, received 42"):
        score(policy, [Tokenised((1,) * 40, (2, 3), ("a", "b"))], tmp_path / "scores")


def test_a_killed_scoring_goes_on(rollouts: Rollouts, byte_model: Path, tmp_path: Path) -> None:
    policy = load_policy(str(byte_model))
    sequences = tokenise(rollouts, policy.tokenizer, TokenOptions(policy.end_token_ids)).sequences
    calls = []
    policy.model.register_forward_hook(lambda *_: calls.append(1))
    whole, _ = score(policy, sequences, tmp_path / "undisturbed", batch_tokens=1)
    assert len(calls) == 5

    def killed(done: int, total: int, words: str) -> None:
        if len(calls) == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score(policy, sequences, tmp_path / "killed", batch_tokens=1, progress=killed)
    found, _ = score(policy, sequences, tmp_path / "killed", batch_tokens=1)
    assert len(calls) == 10  # two before the kill, three after it
    assert all(np.array_equal(found[name], whole[name]) for name in whole)
    score(policy, sequences, tmp_path / "killed", batch_tokens=1, temperature=0.5)
    assert len(calls) == 15  # another temperature is another result


def test_models_that_cannot_score_are_refused(byte_model: Path, tiny_decoder: Path, tmp_path: Path) -> None:
    from transformers import AutoModel

    AutoModel.from_pretrained(byte_model).save_pretrained(tmp_path / "headless")
    with pytest.raises(ValueError, match=r"model: expected a model with a causal head .* which lacks lm_head.weight"):
        load_policy(str(tmp_path / "headless"), str(byte_model))
    with pytest.raises(ValueError, match=r"tokenizer: expected one whose ids are below 21, .* with ids up to"):
        load_policy(str(tiny_decoder), str(byte_model))
    with pytest.raises(ValueError, match="model: expected a causal language model"):
        load_policy(str(tmp_path / "nothing"))
    (tmp_path / "encoder").mkdir()
    (tmp_path / "encoder" / "config.json").write_text('{"model_type": "t5"}')
    with pytest.raises(ValueError, match="model: expected a causal language model"):
        load_policy(str(tmp_path / "encoder"))


# -- the command ------------------------------------------------------------------------------------------------------


def test_every_bad_input_is_one_line_and_leaves_nothing(
    tmp_path: Path, byte_model: Path, tiny_decoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = str(written(tmp_path, LINES))
    broken = str(written(tmp_path, [LINES[0], "{"], "broken.jsonl"))
    foreign = str(written(tmp_path, [{**line, "completion": "x"} for line in LINES], "foreign.jsonl"))
    out = tmp_path / "made" / "page.html"
    model = ["--model", str(tiny_decoder)]
    cases = [
        ([broken, *model], "broken.jsonl, line 2: expected a JSON object"),
        ([foreign, *model], "line 1, completion: expected text that the tokenizer gives back unchanged"),
        ([good, "--model", "no/such"], "model: expected a causal language model"),
        ([good, *model, "--tokenizer", str(byte_model)], "tokenizer: expected one whose ids are below 21"),
        ([good, *model, "--rule", "clip-bb"], "did you mean 'clip-b'"),
        ([good, *model, "--temperature", "0"], "temperature: expected a finite number > 0"),
        (["no-such.jsonl", *model], "rollouts: expected a .jsonl or .parquet file"),
        ([str(tmp_path), *model], "expected a folder with completions_STEP.parquet"),
        ([good, *model, "--step", "3"], "step: expected a folder of logs"),
        ([good], "inspect:"),
    ]
    for words, message in cases:
        assert cli.main(["inspect", *words, "--out", str(out)]) == 2, words
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert cli.main(["inspect", good, *model, "--out", str(tmp_path / "made" / "page.pdf")]) == 2
    assert "out: expected a file ending in .html, .csv, .parquet" in capsys.readouterr().err
    assert not (tmp_path / "made").exists()


def test_trls_own_log_and_the_table(tiny_decoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A real run's log is read; its advantages are what we compute from its rewards; the table holds the scores."""
    import pandas

    from entropy_theory.training.config import TrainConfig
    from entropy_theory.training.run import train

    run = tmp_path / "run"
    train(TrainConfig(str(tiny_decoder), steps=2, prompts_per_step=8, log_completions=True, out=run))
    logged = read_rollouts(run)
    assert logged.source.endswith("completions_00002.parquet")
    assert read_rollouts(run, step=1).items != logged.items
    recorded, from_log = advantages_of(logged)
    assert from_log
    assert (recorded > 0).any()
    # prompts repeat within a step, so that the groups of the run are its consecutive sixteen
    bare = tuple(replace(item, advantage=None, group=str(n // 16)) for n, item in enumerate(logged.items))
    np.testing.assert_allclose(advantages_of(replace(logged, items=bare))[0], recorded, atol=2e-6)  # TRL's are float32

    words = ["inspect", str(run), "--model", str(run / "model")]
    for name in ("tokens.csv", "tokens.parquet"):
        assert (
            cli.main(
                [*words, "--rule", "clip-b(mu=0.5, advantages='all')", "entropy-bonus", "--out", str(tmp_path / name)]
            )
            == 0
        )
    out = capsys.readouterr().out.replace("\n", " ")
    assert "128 completions" in out
    table = pandas.read_parquet(tmp_path / "tokens.parquet")
    text = table.groupby("completion")["token"].agg("".join)
    assert text.str.replace(r"<\w+>", "", regex=True).tolist() == [item.completion for item in logged.items]
    # the log's ids hold what its text has lost: the end tokens that were sampled, and none after the length limit
    ids = table.groupby("completion")["token_id"].agg(tuple)
    assert ids.tolist() == [item.completion_ids for item in logged.items]
    ended = ids.map(lambda tokens: tokens[-1] == decoder.SPECIAL_TOKENS.index("<eos>"))
    assert 0 < (~ended).sum() < len(ids)
    assert (ids[~ended].map(len) == 8).all()
    rebuilt = table.prob * (table.entropy + table.log_prob)
    np.testing.assert_allclose(table.discriminant, rebuilt, atol=1e-6)
    np.testing.assert_allclose(table.effect, -table.advantage * table.centered_discriminant, rtol=1e-6)
    kept = table["kept[clip-b(mu=0.5, advantages='all')]"]
    assert 0 < (~kept).sum() < len(table) / 2
    assert (table["coefficient[clip-b(mu=0.5, advantages='all')]"] == table.advantage.where(kept, 0)).all()
    assert (table["effect[entropy-bonus]"] > table.effect).all()
    read = pandas.read_csv(tmp_path / "tokens.csv", dtype={"token": str}, keep_default_na=False)
    assert read.token.tolist() == table.token.tolist()
    np.testing.assert_allclose(read.effect, table.effect, rtol=1e-12)
