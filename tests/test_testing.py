"""The public strategies give what they promise, and reach the corners."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import find, given, settings

from entropy_theory import entropy, testing

QUIET = settings(database=None, derandomize=True, deadline=None, max_examples=2000)


@given(testing.logits())
def test_logits_are_those_of_a_policy(row):
    assert row.dtype == np.float64
    assert row.ndim == 1
    assert np.isfinite(row).any()
    assert entropy(row) >= 0.0


@given(testing.policies(), testing.steps(1e-6, 2.0))
def test_policies_and_steps(probs, step):
    assert probs.sum() == pytest.approx(1.0)
    assert (probs >= 0.0).all()
    assert 1e-6 * (1 - 1e-12) <= abs(step) <= 2.0 * (1 + 1e-12)


@given(testing.logits_and_token(), testing.logits_and_move(impossible=False))
def test_pairs_belong_together(with_token, with_move):
    row, token = with_token
    assert 0 <= token < len(row)
    start, move = with_move
    assert start.shape == move.shape
    assert np.isfinite(start).all()


@pytest.mark.parametrize("per_token", [False, True])
def test_token_batches(per_token):
    @given(testing.token_batches(per_token_advantages=per_token))
    def holds(fields):
        shape = fields["log_probs"].shape
        for name, values in fields.items():
            assert values.shape == (shape if name != "advantages" or per_token else shape[:1])
            assert np.isfinite(values).all()
        assert (fields["log_probs"] <= 0.0).all()
        assert (fields["old_log_probs"] <= 0.0).all()
        assert fields["completion_mask"].dtype == np.bool_
        p = np.exp(fields["log_probs"])
        S = p * (fields["entropy"] + fields["log_probs"])
        assert np.allclose(S, fields["discriminant"], atol=1e-12)
        assert np.allclose(S - fields["baseline"], fields["centered_discriminant"], atol=1e-12)

    holds()


def test_the_corners_are_reached():
    find(testing.logits(), lambda row: np.isneginf(row).any(), settings=QUIET)
    find(testing.logits(), lambda row: entropy(row) < 1e-20, settings=QUIET)
    find(testing.logits(), lambda row: np.ptp(row) == 0.0 and len(row) > 2, settings=QUIET)
    find(testing.logits(), lambda row: np.abs(row).max() > 9000.0, settings=QUIET)
    find(testing.token_batches(), lambda fields: not fields["completion_mask"].any(), settings=QUIET)
    find(testing.token_batches(), lambda fields: not fields["completion_mask"].all(axis=1).any(), settings=QUIET)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: testing.logits(vocab_sizes=(1, 2)), "vocab_sizes: expected sizes of at least 2"),
        (lambda: testing.logits(max_scale=-1.0), "max_scale: expected a number >= 0"),
        (lambda: testing.steps(0.0), "smallest, largest: expected 0 < smallest <= largest"),
        (lambda: testing.token_batches(max_tokens=0), "max_tokens: expected at least 1, received 0"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the message is compared below)
        call()
    assert message in str(caught.value)


def test_hypothesis_is_only_loaded_when_used():
    code = (
        "import sys, entropy_theory.testing as t; print('hypothesis' in sys.modules);"
        "sys.modules['hypothesis'] = None\n"
        "try: t.logits()\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0] == "False"
    assert "entropy-theory[testing]" in done.stdout
