"""Rules by name: the text form, its errors, and that printing round-trips."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

import entropy_theory as et
from entropy_theory.control import Pipe, Rule, register, rule, rule_class, rule_names
from entropy_theory.control.spec import parse_spec

positive = st.floats(0, 100) | st.integers(0, 10)
common = {
    "mu": positive,
    "side": st.sampled_from(["lower", "upper", "both"]),
    "advantages": st.sampled_from(["negative", "positive", "all"]),
    "denominator": st.sampled_from(["kept", "valid"]),
    "statistics": st.sampled_from(["kept", "valid"]),
}


def some(name: str, **parameters: st.SearchStrategy) -> st.SearchStrategy[tuple]:
    return st.fixed_dictionaries({}, optional=parameters).map(lambda chosen: (name, chosen))


plain = st.one_of(
    st.just(("none", {})),
    some("clip-b", **common, log_probs_source=st.sampled_from(["auto", "rollout", "current", "old"])),
    some("clip-v", **common, max_fraction=st.none() | st.floats(0, 1), zero_advantages=st.sampled_from(["kept"])),
    some("ppo-clip", epsilon_low=positive, epsilon_high=positive, dual_clip=st.none() | st.floats(1.01, 20)),
    some("clip-higher", epsilon_high=positive),
)
matched = plain.map(lambda inner: ("random-mask", {"match": inner}))
twice_matched = matched.map(lambda inner: ("random-mask", {"match": inner, "denominator": "valid"}))
single = plain | matched | twice_matched | st.floats(0, 1).map(lambda f: ("random-mask", {"fraction": f}))


def build(name: str, parameters: dict[str, object]) -> Rule:
    return rule(name, **{key: build(*v) if key == "match" else v for key, v in parameters.items()})


@given(st.lists(single, min_size=1, max_size=3))
def test_printing_round_trips(described: list[tuple]) -> None:
    rules = [build(*one) for one in described]
    made = rules[0] if len(rules) == 1 else Pipe(tuple(rules))
    again = rule(str(made))
    assert again == made
    assert hash(again) == hash(made)
    assert str(again) == str(made)
    assert (again.phase, again.needs) == (made.phase, made.needs)


@given(st.text(alphabet="clip-b(mu=1)|'\" ,.\\#*[]{}eé\n0", max_size=25))
def test_any_text_is_a_rule_or_a_clear_error(text: str) -> None:
    try:
        made = rule(text)
    except ValueError as error:
        assert "expected" in str(error)  # noqa: PT017
    else:
        assert rule(str(made)) == made


def test_printed_forms() -> None:
    assert str(rule("clip-b")) == "clip-b"
    assert str(rule(" clip-b ( mu = 1 , ) ")) == "clip-b(mu=1)"
    assert str(rule("clip-b(mu=2.5)")) == "clip-b"
    assert str(rule("clip-v(max_fraction=None)|ppo-clip")) == "clip-v(max_fraction=None)|ppo-clip"
    assert str(rule("random-mask", match="clip-b(mu=1.0)|clip-v")) == "random-mask(match='clip-b(mu=1)|clip-v')"


def test_bars_inside_quotes_do_not_split() -> None:
    calls = parse_spec(r"""random-mask(match="clip-b|random-mask(match='clip-v(mu=2)|none')")|ppo-clip""")
    assert [name for name, _ in calls] == ["random-mask", "ppo-clip"]
    assert rule(calls[0][1]["match"]).rules[1].match == "clip-v(mu=2)|none"


def test_quotes_nest_to_any_depth() -> None:
    """From the third level on, Python's repr escapes quotes: an escaped quote must not end the text."""
    made = rule("clip-b(side='both')|ppo-clip")
    for _ in range(4):
        made = rule("random-mask", match=made) | rule("none")
        assert rule(str(made)) == made
    assert parse_spec(r"a(x='it\'s (')|b") == [("a", {"x": "it's ("}), ("b", {})]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "rule: expected name, .* received ''"),
        ("clip-b|", "rule: expected name"),
        ("clip-b(mu=1", "rule: expected name"),
        ("clip-b(mu=1))", "rule: expected name"),
        ("clip-b(mu=1)(mu=2)", "rule: expected name"),
        ("clip-b(mu=1)+none(", "rule: expected name"),
        ("clip-b(1)", "rule: expected name"),
        ("clip-b(*[1])", "rule: expected name"),
        ("clip-b(**{'mu': 1})", "rule: expected each parameter of clip-b once"),
        ("clip-b(mu=1, mu=2)", "rule: expected"),
        ("clip-b(mu=__import__('os'))", r"mu: expected a number, .* received __import__\('os'\)"),
        ("clip-b(mu=nan)", "mu: expected a number, .* received nan"),
        ("clip-b mu=1", "rule: expected name"),
        ("clipb", "rule: expected one of .*clip-b, .* received 'clipb'; did you mean 'clip-b'"),
        ("qqqq", "rule: expected one of .*clip-b, .* received 'qqqq'$"),
        ("clip-b(muu=1)", "clip-b parameter: expected one of mu, .* received 'muu'; did you mean 'mu'"),
        ("clip-b(name='x')", "clip-b parameter: expected one of mu, .* received 'name'"),
        ("none(mu=1)", "none parameter: expected no parameters, received 'mu'"),
        ("clip-b(mu=-1)", "clip-b mu: expected a number in \\[0, 1e\\+09\\], received -1"),
        ("clip-b(mu=1e999)", "clip-b mu: expected a number in \\[0, 1e\\+09\\], received inf"),
        ("clip-b(side='left')", "clip-b side: expected one of 'lower', 'upper', 'both', received 'left'"),
        ("clip-b(advantages=['all'])", "clip-b advantages: expected one of 'negative'"),
        ("clip-b(denominator='all')", "clip-b denominator: expected one of 'kept', 'valid', received 'all'"),
        ("clip-b(statistics=1)", "clip-b statistics: expected one of 'valid', 'kept', received 1"),
        ("clip-b(log_probs_source='new')", "clip-b log_probs_source: expected one of 'auto', 'rollout'"),
        ("clip-v(zero_advantages=0)", "clip-v zero_advantages: expected one of 'uncapped', 'kept', received 0"),
        ("ppo-clip(dual_clip=1)", "ppo-clip dual_clip: expected a number in \\(1, 1e\\+09\\], received 1"),
        ("random-mask", "random-mask match, fraction: expected exactly one of the two, received neither"),
        ("random-mask(match='none', fraction=0.1)", "random-mask match, fraction: .* received both"),
        ("random-mask(match=3)", "random-mask match: expected a rule or its specification, received 3"),
        ("random-mask(match='clip-x')", "rule: expected one of .* received 'clip-x'"),
    ],
)
def test_errors_name_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rule(text)


def test_parameters_beside_a_specification() -> None:
    assert rule("clip-b(mu=1)", side="both") == rule("clip-b(mu=1, side='both')")
    with pytest.raises(ValueError, match="mu: expected a parameter given once"):
        rule("clip-b(mu=1)", mu=2)
    with pytest.raises(ValueError, match="mu: expected parameters of a pipe inside its specification"):
        rule("clip-b|ppo-clip", mu=2)
    with pytest.raises(ValueError, match="mu: expected no parameters beside a finished rule"):
        rule(rule("clip-b"), mu=2)


def test_a_finished_rule_comes_back_as_it_is() -> None:
    clip = rule("clip-b", mu=1)
    assert rule(clip) is clip
    assert et.rule is rule


def test_pipes_are_flat_and_take_the_strongest_phase() -> None:
    a, b, c = rule("clip-b"), rule("clip-v"), rule("ppo-clip")
    pipe = (a | b) | c
    assert pipe == a | (b | c) == rule("clip-b|clip-v|ppo-clip")
    assert pipe.phase == "live"
    assert (a | b).phase == "batch"
    assert pipe.needs == ("entropy", "centered_discriminant", "old_log_probs")
    with pytest.raises(ValueError, match="rules: expected at least two rules"):
        Pipe((a,))
    with pytest.raises(TypeError):
        a | "clip-v"


def test_what_a_parameter_decides() -> None:
    assert rule("clip-b", log_probs_source="rollout").needs == ("entropy", "rollout_log_probs")
    assert rule("random-mask", match="clip-v|ppo-clip").needs == ("centered_discriminant", "old_log_probs")
    assert rule("random-mask", match="ppo-clip").phase == "live"
    assert rule("random-mask", fraction=0.5).phase == "batch"


def test_every_registered_rule_says_what_it_is() -> None:
    for name in rule_names():
        cls = rule_class(name)
        assert cls.name == name
        assert cls.phase in ("batch", "live")
        assert cls.quadrants
        assert cls.__doc__


def test_names_are_unique_and_spellable() -> None:
    @dataclass(frozen=True)
    class Thief(Rule):
        name: ClassVar[str] = "clip-b"

    @dataclass(frozen=True)
    class Odd(Rule):
        name: ClassVar[str] = "a|b"

    with pytest.raises(ValueError, match="name: expected a name that ClipB has not taken, received 'clip-b'"):
        register(Thief)
    with pytest.raises(ValueError, match="name: expected a name made of"):
        register(Odd)
