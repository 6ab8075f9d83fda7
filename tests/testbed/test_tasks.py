"""Tasks by name: what is asked, what is judged right, and what a wrong specification says."""

from __future__ import annotations

import random

import pytest

from entropy_theory.testbed.tasks import load_task, parse_task, read_answer, task_names

reasoning_gym = pytest.importorskip("reasoning_gym")
# their entries hold no answer in the form that the verifier reads
NO_REFERENCE = {"boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"}


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("specification", ["sum", "arithmetic:numbers=3", "addition:largest=9", "chain_sum", "gcd"])
def test_the_reference_answer_is_right_and_another_is_not(specification: str, chat: bool) -> None:
    task = load_task(specification, rows=4, seed=3, chat=chat)
    answers = task.prompts["answer"]
    rows = list(range(4))
    assert task(answers, row=rows) == [1.0] * 4
    assert task(["", "x", "<answer></answer>", "-1"], row=rows) == [0.0] * 4
    assert (
        task([[{"role": "assistant", "content": f"so <answer>{a}</answer>"}] for a in answers], row=rows) == [1.0] * 4
    )
    assert isinstance(task.prompts[0]["prompt"], list if chat else str)


def test_every_name_loads_and_survives_any_text() -> None:
    for name in task_names():
        task = load_task(name, rows=2, seed=0, chat=True)
        texts = [task.prompts[0]["answer"], "é(", "", "1 2 3"]
        rewards = task(texts, row=[0] * 4)
        assert all(0.0 <= reward <= 1.0 for reward in rewards), name
        assert rewards[2] == 0.0
        assert rewards[0] == 1.0 or name in NO_REFERENCE, name


def test_prompts_follow_the_seed_and_the_parameters() -> None:
    one, again, other = (
        load_task("chain_sum:min_terms=2,max_terms=2", 3, seed, chat=False).prompts for seed in (1, 1, 2)
    )
    assert one["prompt"] == again["prompt"] != other["prompt"]
    assert all(text.count(" + ") + text.count(" - ") == 1 for text in one["prompt"])


@pytest.mark.parametrize("name", ["list_functions", "chain_sum"])
def test_prompts_do_not_follow_the_state_of_other_generators(name: str) -> None:
    random.seed(1)
    first = load_task(name, 3, 0, chat=True).prompts["prompt"]
    after = random.random()
    random.seed(1)
    assert random.random() == after  # and it is left as it was
    assert load_task(name, 3, 0, chat=True).prompts["prompt"] == first


def test_a_number_may_have_thousands_separators() -> None:
    task = load_task("addition:largest=999", rows=8, seed=0, chat=True)
    row = next(row for row, total in enumerate(task.prompts["answer"]) if len(total) == 4)
    total = int(task.prompts["answer"][row])
    assert task([f"{total:,}", f"= {total}", f"{total:,}1"], row=[row] * 3) == [1.0, 1.0, 0.0]


def test_what_is_logged_is_counted_per_prompt() -> None:
    task = load_task("addition", rows=2, seed=0, chat=False)
    right, logged = task.prompts[0]["answer"], {}
    task([right, right, "1", "", "1", "1"], row=[0, 0, 0, 0, 1, 1], log_metric=logged.__setitem__)
    assert logged == {"distinct_right": 0.5, "distinct": 2.0, "no_answer": pytest.approx(1 / 6), "unreadable": 0.0}


@pytest.mark.parametrize(
    ("specification", "message"),
    [
        ("chain_summ", r"task: expected one of \d+ names, such as chain_sum, .*received 'chain_summ'"),
        ("chain_sum:min_term=2", "task chain_sum parameter: expected one of .*; did you mean 'min_terms'"),
        ("chain_sum:seed=2", "task chain_sum parameter"),
        ("chain_sum:min_terms=0", "task chain_sum: expected parameters that it can be made with"),
        ("sum:x=1", "task sum parameter: expected no parameters"),
        ("addition:largest=0", "addition largest: expected an integer from 1 to"),
        ("addition:largest", "task: expected NAME:key=value"),
        ("composite", "task: expected one of"),  # it mixes datasets and has no verifier of its own
        ("addition:largest=1,largest=2", "each key once"),
        ("", "task: expected NAME"),
        ("addition:largest=99999999999999999999", "addition largest: expected an integer from 1 to"),
        ("addition:largest=True", "addition largest: expected an integer from 1 to"),
        ("arithmetic:numbers=2.5", "arithmetic numbers: expected an integer from 2 to 100, received 2.5"),
        ("arithmetic:numbers=abc", "arithmetic numbers: expected an integer from 2 to 100, received 'abc'"),
    ],
)
def test_a_wrong_specification_is_one_line(specification: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load_task(specification, rows=2, seed=0, chat=True)
    assert "\n" not in str(caught.value)


def test_values_are_literals_or_texts() -> None:
    assert parse_task("n:a=(1,2),b=[3,4],c=x y") == ("n", {"a": (1, 2), "b": [3, 4], "c": "x y"})
    assert read_answer("<answer>1</answer> or <answer>\n2 </answer>") == "2"
