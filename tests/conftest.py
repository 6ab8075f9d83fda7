"""Shared set-up: shapes are checked at run time, draws are reproducible, nothing is written to the user's cache."""

from __future__ import annotations

import gc
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach for the network
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from jaxtyping import config, install_import_hook

# Shapes matter where tensors are; the bridge subclasses TRL's dataclasses, whose annotations do not hold at run time.
install_import_hook(["entropy_theory.vocab", "entropy_theory.control", "entropy_theory.dynamics"], "beartype.beartype")

import pytest  # noqa: E402  after the hook
from hypothesis import settings  # noqa: E402

settings.register_profile("default", derandomize=True, deadline=None, max_examples=60)
settings.load_profile("default")

if importlib.util.find_spec("trl") is None:
    collect_ignore = ["bridge/trl", "training", "audit", "inspection"]  # they need the extra "train"


def pytest_collection_finish() -> None:
    """Spare the garbage collector the modules and tests: a trainer collects twice, each time over all of them."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _cache_of_this_run(tmp_path_factory: pytest.TempPathFactory):
    """Keep warmed-up decoders of the tests apart from the user's."""
    before = os.environ.get("ENTROPY_THEORY_CACHE")
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # all processes of the run share what one of them has warmed up
    os.environ["ENTROPY_THEORY_CACHE"] = str(folder / "cache")
    yield
    if before is None:
        del os.environ["ENTROPY_THEORY_CACHE"]
    else:
        os.environ["ENTROPY_THEORY_CACHE"] = before


@pytest.fixture
def shapes_unchecked() -> Iterator[None]:
    """Spare thousands of calls alike the run-time checks of shapes, which take most of their time."""
    before = config.jaxtyping_disable
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", before)


@pytest.fixture(scope="session")
def tiny_decoder(_cache_of_this_run: None) -> Path:
    """A decoder warmed up just enough to be right now and then, in a second."""
    from entropy_theory.testbed import decoder

    return decoder.cached_checkpoint(
        decoder.WarmupConfig(hidden_size=32, layers=1, heads=2, steps=250, batch_size=64, learning_rate=5e-3)
    )


@pytest.fixture(scope="session")
def byte_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A causal language model with random weights whose tokenizer takes any text, byte by byte where it must."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("byte-model")
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(["the answer is the sum of the terms", "so the sum is right"] * 4, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", clean_up_tokenization_spaces=False)
    tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(vocab_size=len(tokenizer), initializer_range=0.3, eos_token_id=tokenizer.eos_token_id, **sizes)
        )
    model.save_pretrained(folder)
    return folder
