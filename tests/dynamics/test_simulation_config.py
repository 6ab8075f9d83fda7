"""What a configuration refuses, and how equal configurations are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch
import tyro

from entropy_theory.dynamics import SimulationConfig


@pytest.fixture(autouse=True)
def _unchecked():
    """Look at the class's own messages: users have no run-time type checker in front of them."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


BAD: list[tuple[dict[str, Any], str]] = [
    *[({name: 0}, f"{name}: expected an integer >= 1, received 0") for name in ("policies", "steps", "iterations")],
    *[({name: 0}, f"{name}: expected an integer >= 1") for name in ("record_every", "checkpoint_every")],
    ({"block_elements": 0}, "block_elements: expected an integer >= 1"),
    ({"steps": 1.5}, "steps: expected an integer >= 1, received 1.5"),
    ({"steps": True}, "steps: expected an integer >= 1, received True"),
    ({"vocab_size": 1}, "vocab_size: expected an integer >= 2, received 1"),
    ({"group_size": 1}, "group_size: expected an integer >= 2, received 1"),
    ({"pairs": -1}, "pairs: expected an integer >= 0, received -1"),
    ({"seed": -1}, "seed: expected an integer >= 0, received -1"),
    *[
        ({"step_size": x}, r"step_size: expected a number in \(0, 1e\+09\], rec")
        for x in (0.0, float("nan"), "1", 1e200)
    ],
    ({"logit_scale": -1.0}, r"logit_scale: expected a number in \[0, 1e\+06\], received -1.0"),
    ({"logit_scale": 1e308}, "logit_scale: expected a number in"),
    ({"correct_share": 0.0}, r"correct_share: expected a number in \(0, 1\], received 0.0"),
    ({"correct_share": 1.0}, "correct_share: expected a number < 1: some token must be wrong, received 1.0"),
    ({"steps": 10**30}, "steps: expected an integer <= 2147483647, received 1000000"),
    ({"initialisation": "flat"}, "initialisation: expected one of gaussian, uniform, zipf, .* received 'flat'"),
    ({"initialisation": "saved"}, "logits: expected a file of saved logits for initialisation saved, received None"),
    ({"initialisation": "forking", "vocab_size": 3}, "vocab_size: expected an integer >= 4 for initialisation"),
    ({"zipf_exponent": -0.5}, "zipf_exponent: expected a number in .0, 1e.06., received -0.5"),
    ({"optimizer": "adamw"}, "optimizer: expected one of sgd, natural, adam, received 'adamw'"),
    ({"logits": Path("no-such.safetensors")}, "logits: expected a safetensors file .* received no-such.safetensors"),
    ({"advantage": "rank"}, "advantage: expected one of std, mean, received 'rank'"),
    ({"dtype": "bf16"}, "dtype: expected one of float64, float32, received 'bf16'"),
    ({"rule": "clip-bb"}, "rule: expected one of .*did you mean 'clip-b'"),
    ({"rule": "clip-b(mu=-1)"}, "clip-b mu: expected a number in"),
    ({"device": "abacus"}, "device: expected cpu or cuda, with a number if need be, received 'abacus'"),
    ({"device": "meta"}, "device: expected cpu or cuda, with a number if need be, received 'meta'"),
]


@pytest.mark.parametrize(("fields", "message"), BAD, ids=[str(fields) for fields, _ in BAD])
def test_bad_values_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SimulationConfig(**fields)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_missing_gpu_is_said() -> None:
    with pytest.raises(ValueError, match="device: expected a device of this machine"):
        SimulationConfig(device="cuda")


def test_rules_that_need_what_a_bank_has_not() -> None:
    from entropy_theory.control import rule_class, rule_names

    for name in rule_names():
        if "rewards" in rule_class(name).needs:
            with pytest.raises(ValueError, match="rule: expected one that does without rewards"):
                SimulationConfig(rule=name)


def test_equal_configurations_are_written_alike() -> None:
    one = SimulationConfig(rule="clip-b( mu = 1.0 )", step_size=1, out="runs/x")  # type: ignore[arg-type]
    other = SimulationConfig(rule="clip-b(mu=1)", step_size=1.0, out=Path("runs/x"))
    assert one == other


def test_is_a_command_line() -> None:
    words = ["--rule", "clip-b(mu=1)", "--iterations", "2", "--advantage", "mean", "--out", "runs/a"]
    config = tyro.cli(SimulationConfig, args=words)
    assert config == SimulationConfig(rule="clip-b(mu=1)", iterations=2, advantage="mean", out=Path("runs/a"))
