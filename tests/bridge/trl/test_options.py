"""The table of TRL's options in docs/trl.md is what a run of every row says."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import ClusterConfig
from trl import GRPOConfig, GRPOTrainer
from trl_runs import arguments, build, closeness, parameters_after

from entropy_theory.bridge import trl as bridge

ROOT = Path(__file__).parents[3]


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("simulation_trl_options", ROOT / "simulations" / "trl_options.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


options = load()


@pytest.mark.slow  # all rows together
@pytest.mark.parametrize("option", options.OPTIONS, ids=lambda option: option.name)
def test_row_of_the_document(tiny_decoder: Path, option: object) -> None:
    if not options.available(option):
        pytest.skip("needs peft")
    row = str(options.measure(option, tiny_decoder))
    assert "DIFFERS" not in row
    assert row in options.DOCUMENT.read_text(encoding="utf-8").splitlines()


def test_the_document_has_no_other_row() -> None:
    text = options.DOCUMENT.read_text(encoding="utf-8").split(options.BEGIN)[1].split(options.END)[0]
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert [row.split("|")[1].strip(" `") for row in rows] == [option.name for option in options.OPTIONS]


def test_lora_under_a_mask_rule(tiny_decoder: Path, tmp_path: Path) -> None:
    """Adapters move, the base does not, and the mask changes the update."""
    peft = pytest.importorskip("peft")
    updates = {}
    for rule in ("none", "clip-b(mu=0.5)|clip-v(mu=0.5, max_fraction=None)|ppo-clip"):
        torch.manual_seed(0)
        adapter = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        args = GRPOConfig(**arguments(tmp_path, num_iterations=2, max_steps=4, per_device_train_batch_size=16))
        trainer = build(
            bridge.EntropyControlledGRPOTrainer,
            tiny_decoder,
            args,
            rule=rule,
            reward_funcs=closeness,
            peft_config=adapter,
        )
        before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
        trainer.train()
        moved = {n for n, p in trainer.model.named_parameters() if not torch.equal(p.detach(), before[n])}
        assert moved
        assert all("lora" in name for name in moved)
        updates[rule] = torch.cat([p.detach().flatten() for n, p in trainer.model.named_parameters() if "lora" in n])
        assert trainer.state.log_history[0]["entropy_control/dropped_share"] > 0 or rule == "none"
    none, masked = updates.values()
    assert torch.linalg.norm(masked - none) > 1e-3 * torch.linalg.norm(none)


def test_bf16_under_a_mask_rule(tiny_decoder: Path, tmp_path: Path) -> None:
    """Statistics are of the policy in bf16, computed in float32 from its logits."""
    found = {}
    for bf16 in (False, True):
        args = GRPOConfig(**arguments(tmp_path, bf16=bf16, num_iterations=2, learning_rate=0.0))
        trainer = build(bridge.EntropyControlledGRPOTrainer, tiny_decoder, args, rule="clip-b(mu=0.5)")
        trainer.train()
        found[bf16] = trainer.state.log_history[0]
    # bf16 keeps 8 bits of each logit: about 1 % of entropies of order 1; other completions may be sampled.
    assert found[True]["entropy_control/entropy"] == pytest.approx(found[True]["entropy"], rel=0.01)
    assert found[False]["entropy_control/entropy"] == pytest.approx(found[False]["entropy"], rel=1e-5)
    assert found[True]["entropy_control/dropped_share"] > 0


def test_examples_for_eight_gpus_are_what_accelerate_reads() -> None:
    text = (ROOT / "docs" / "examples" / "accelerate_fsdp2.yaml").read_text(encoding="utf-8")
    assert yaml.safe_load(text)["fsdp_config"]["fsdp_version"] == 2
    config = ClusterConfig.from_yaml_file(ROOT / "docs" / "examples" / "accelerate_fsdp2.yaml")
    assert (config.num_processes, config.mixed_precision) == (8, "bf16")
    assert config.distributed_type == "FSDP"
    config = ClusterConfig.from_yaml_file(ROOT / "docs" / "examples" / "accelerate_ddp.yaml")
    assert (config.num_processes, config.mixed_precision, config.distributed_type) == (8, "bf16", "MULTI_GPU")


def test_plain_trl_moves_under_the_options(tiny_decoder: Path, tmp_path: Path) -> None:
    """The table compares updates, so there must be one, and its second pass must clip."""
    args = GRPOConfig(
        **arguments(tmp_path, optim="sgd", max_grad_norm=0.0, learning_rate=0.5, num_iterations=2, max_steps=4,
                    per_device_train_batch_size=16)
    )  # fmt: skip
    trainer = build(GRPOTrainer, tiny_decoder, args, reward_funcs=closeness)
    parameters_after(trainer)
    assert max(line["clip_ratio/region_mean"] for line in trainer.state.log_history[:-1]) > 0
