"""The small decoder: a character tokenizer, an 85k-parameter Llama, and its supervised warm-up."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from entropy_theory.errors import WriteError, at_least, finite_number, invalid, one_line
from entropy_theory.testbed import sum_task

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>")
CHARACTERS = "0123456789+-*/=() "
CACHE_VARIABLE = "ENTROPY_THEORY_CACHE"


@dataclass(frozen=True)
class WarmupConfig:
    """The decoder and its supervised warm-up; everything that decides its weights.

    Attributes:
        hidden_size: Width d of the decoder.
        layers: Number of blocks.
        heads: Attention heads.
        steps: Supervised steps.
        batch_size: Demonstrations per step.
        learning_rate: Peak rate of AdamW, decayed linearly to zero.
        wrong_share: Share of demonstrations whose answer ignores the prompt.
        seed: Seed of weights and demonstrations.
    """

    hidden_size: int = 64
    layers: int = 2
    heads: int = 4
    steps: int = 1000
    batch_size: int = 128
    learning_rate: float = 2e-3
    wrong_share: float = 0.3
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values that cannot be trained with."""
        at_least(self, 1, "hidden_size", "layers", "heads", "batch_size")
        at_least(self, 0, "steps")
        finite_number(self, "learning_rate")
        if self.hidden_size % (2 * self.heads):
            raise invalid("hidden_size", f"a multiple of 2 * heads = {2 * self.heads}", self.hidden_size)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build the character tokenizer: 21 ids, left padding, ``<eos>`` ends an answer."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate([*SPECIAL_TOKENS, *CHARACTERS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def build_model(config: WarmupConfig, vocab_size: int, positions: int = 64) -> PreTrainedModel:
    """Build the decoder with random weights from the configuration's seed, for sequences of up to so many positions."""
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=vocab_size,
                hidden_size=config.hidden_size,
                intermediate_size=2 * config.hidden_size,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                num_key_value_heads=config.heads,
                max_position_embeddings=positions,
                pad_token_id=0,
                bos_token_id=1,
                eos_token_id=2,
                tie_word_embeddings=False,
            )
        )


def warm_up(config: WarmupConfig, progress: Callable[[int, int, str], None] | None = None) -> PreTrainedModel:
    """Train the decoder on demonstrations with the cross-entropy of the answer.

    Args:
        config: Sizes, steps, seed.
        progress: Called with (steps done, steps in all, a word on the loss).

    Returns:
        The model, in evaluation mode.
    """
    tokenizer = build_tokenizer()
    model = build_model(config, len(tokenizer)).train()
    generator = np.random.default_rng(config.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / max(config.steps, 1))
    for step in range(config.steps):
        texts = sum_task.demonstrations(config.batch_size, config.wrong_share, generator)
        batch = tokenizer([text + "<eos>" for text in texts], return_tensors="pt", padding=True)
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        labels[:, : -(sum_task.ANSWER_LENGTH + 1)] = -100  # the prompt is given, not learned
        loss = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        if progress is not None:
            progress(step + 1, config.steps, f"loss {loss.item():.3f}")
    return model.eval()


def cache_directory() -> Path:
    """Return where warmed-up decoders are kept: ``$ENTROPY_THEORY_CACHE`` or ``~/.cache/entropy-theory``."""
    return Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "entropy-theory")


def cached_checkpoint(
    config: WarmupConfig = WarmupConfig(),
    progress: Callable[[int, int, str], None] | None = None,
) -> Path:
    """Return a folder with the warmed-up decoder and its tokenizer, training it when no run has before.

    Args:
        config: Sizes, steps, seed.
        progress: As for :func:`warm_up`; not called when the decoder is there already.

    Returns:
        The folder, in the form of ``save_pretrained``.

    Raises:
        WriteError: The cache cannot be written; found before the warm-up.
    """
    return cached_model("sum-decoder", config, lambda: warm_up(config, progress))


def cached_model(name: str, config: Any, make: Callable[[], PreTrainedModel]) -> Path:
    """Return the folder of the cache with the model that `make` trains and the character tokenizer.

    Args:
        name: How the folder's name begins; a hash of the configuration and of the versions follows.
        config: A dataclass that decides the weights.
        make: Trains the model; not called when it is there already.

    Raises:
        WriteError: The cache cannot be written.
    """
    import transformers
    from safetensors import SafetensorError

    transformers.utils.logging.disable_progress_bar()  # a bar for writing 300 kB, in the midst of ours
    identity = {"config": asdict(config), "torch": torch.__version__, "transformers": transformers.__version__}
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()[:12]
    folder = cache_directory() / f"{name}-{digest}"
    try:
        save_whole(folder, make)
    except (OSError, SafetensorError) as error:
        where = f"{folder.parent} could not be written: {one_line(error)}"
        raise WriteError(f"{where}; ${CACHE_VARIABLE} names another folder for the warmed-up decoder") from error
    return folder


def save_whole(folder: Path, make: Callable[[], PreTrainedModel]) -> None:
    """Save the model that `make` trains, and the tokenizer, in a folder that appears whole or not at all.

    The work happens in a folder beside it, which is renamed at the end. A folder that holds a model is left alone.
    """
    if (folder / "model.safetensors").exists():
        return
    staged = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        staged = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        make().save_pretrained(staged)
        build_tokenizer().save_pretrained(staged)
        with contextlib.suppress(OSError):  # another process was first, with the same weights
            staged.rename(folder)
        if not (folder / "model.safetensors").exists():
            raise OSError(f"{folder} is taken by something else")
    finally:
        if staged is not None:
            shutil.rmtree(staged, ignore_errors=True)
