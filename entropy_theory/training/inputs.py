"""What a run is given besides its configuration: prompts, reward, model folder and tokenizer."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from entropy_theory import records
from entropy_theory.errors import invalid, one_line, reading
from entropy_theory.testbed import decoder, pretrained, sum_task, tasks
from entropy_theory.training.config import TrainConfig
from entropy_theory.training.rewards import Reward, SumReward, guarded_reward, load_reward

if TYPE_CHECKING:
    from datasets import Dataset

Progress = Callable[[int, int, str], None]

TASK_ROWS = 2048
_TRLS_OWN = frozenset({"completions", "prompts", "trainer_state", "log_extra", "log_metric"})
"""Arguments that TRL passes to every reward function; columns of these names would be passed a second time."""


def load_task(config: TrainConfig, tokenizer: Any) -> tuple[Dataset, Reward]:
    """Load the prompts and the reward function of a run: of its dataset, of its task, or of the sum task.

    Args:
        config: The run.
        tokenizer: The model's; a task's prompts are conversations if it has a chat template, else plain texts.

    Raises:
        ValueError: The dataset, task or reward cannot be used.
    """
    reward: Reward
    if config.task is not None:
        task = tasks.load_task(config.task, TASK_ROWS, config.seed, chat=bool(tokenizer.chat_template))
        prompts, name, reward = task.prompts, config.task, task
        check_alphabet(prompts, tokenizer, config)
        _warn_of_plain_prompts(prompts, tokenizer, config)
    elif config.dataset is None:
        prompts, name = sum_task.dataset(TASK_ROWS, config.seed), "sum task"
        reward = SumReward(config.generations)
    else:
        prompts, name = load_prompts(config.dataset, config.dataset_split), str(config.reward)
        reward = load_reward(name)
    if len(prompts) < config.prompts_per_step:  # TRL would drop the incomplete batch, train nothing and say nothing
        raise invalid(
            "prompts_per_step", f"at most {len(prompts)}, the prompts of the dataset", config.prompts_per_step
        )
    return prompts, guarded_reward(reward, name, config.log_completions)


def check_same_prompts(data: Dataset, config: TrainConfig, resumes: bool) -> None:
    """Compare the prompts with those of the other ranks, and where a run resumes with those that it started with.

    Some datasets of reasoning-gym draw from sets of texts, whose order Python changes from process to process. A file
    may have changed since.

    Args:
        data: This process's prompts.
        config: The run; its folder keeps a digest of the prompts.
        resumes: Whether the run has a checkpoint.

    Raises:
        ValueError: They differ.
    """
    from accelerate import PartialState
    from accelerate.utils import gather_object

    content = hashlib.sha256()
    for batch in data.iter(1000):  # what is no text or number, such as a picture, goes by its kind
        content.update(json.dumps(batch, default=lambda value: type(value).__name__).encode())
    digest, path = content.hexdigest(), config.out / records.PROMPTS
    name, hint = "dataset", ""
    if config.task is not None:
        name, hint = "task", "; with PYTHONHASHSEED=0 in the environment it draws alike in every process"
    if len(set(gather_object([digest]))) > 1:
        raise invalid(name, "the same prompts on every rank", f"others on some{hint}")
    if resumes and path.exists():
        if records.read_json(path)["sha256"] != digest:
            raise invalid(name, f"the prompts that the run in {config.out} started with", f"others{hint}")
    elif PartialState().is_main_process:
        records.write_json(path, {"sha256": digest, "rows": len(data)})


def load_prompts(name: str, split: str) -> Dataset:
    """Load a dataset with a ``prompt`` column from a file, a folder or the hub.

    Raises:
        ValueError: It cannot be loaded, has no such split or no rows, lacks the column, or has one that TRL would hand
            to the reward function beside its own of that name.
    """
    import datasets

    path = Path(name)
    builders = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
    splits = ["train"]
    with reading("dataset", "a file, folder or hub name that loads", name):
        if path.is_file():
            if path.suffix not in builders:
                raise invalid("dataset", f"a file ending in {', '.join(builders)}", name)
            data = datasets.load_dataset(builders[path.suffix], data_files=name, split="train")
        elif path.is_dir() and ((path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists()):
            data = datasets.load_from_disk(name)
            if isinstance(data, datasets.DatasetDict):
                splits = list(data)
                data = data.get(split, data)
        else:
            data, splits = datasets.load_dataset(name, split=split), [split]
    if split not in splits:
        raise invalid("dataset_split", f"one of the splits of {name}: {', '.join(splits)}", repr(split))
    columns = data.column_names
    if "prompt" not in columns:
        raise invalid("dataset", "a column named prompt", f"{name!r} with {', '.join(columns) or 'none'}")
    taken = _TRLS_OWN.intersection(columns)
    if taken:
        raise invalid("dataset", f"no column named {', '.join(sorted(taken))}, which TRL fills", repr(name))
    if not len(data):
        raise invalid("dataset", "at least one row", f"{name!r} with none")
    for row, prompt in enumerate(data["prompt"], start=1):
        chat = isinstance(prompt, list) and prompt and all(isinstance(m, dict) and m.get("role") for m in prompt)
        if not (chat or isinstance(prompt, str)):
            raise invalid(f"dataset, row {row}, prompt", "text or a list of chat messages", one_line(repr(prompt), 60))
    return data


def check_alphabet(prompts: Dataset, tokenizer: Any, config: TrainConfig) -> None:
    """Raise ValueError if the model's tokenizer has no ids for a task's first prompt, as the small decoder's may not.

    Such a tokenizer would write its padding in the place of every letter it lacks.
    """
    prompt = prompts[0]["prompt"]
    if isinstance(prompt, str) and tokenizer.pad_token_id in tokenizer(prompt)["input_ids"]:
        model = config.model or "the small decoder"
        raise invalid("task", f"prompts that the tokenizer of {model} can write", one_line(repr(prompt), 80))


def _warn_of_plain_prompts(prompts: Dataset, tokenizer: Any, config: TrainConfig) -> None:
    """Warn that a task's prompts are plain texts, except for a tokenizer without letters, which writes no other."""
    plain = isinstance(prompts[0]["prompt"], str) and tokenizer.pad_token_id not in tokenizer("What")["input_ids"]
    if plain and os.environ.get("RANK", "0") == "0":  # under torchrun one process tells for all
        warnings.warn(
            f"model {config.model} has no chat template: the prompts of task {config.task} are plain texts",
            stacklevel=3,
        )


def check_chat(prompts: Dataset, tokenizer: Any, config: TrainConfig) -> None:
    """Raise ValueError if the prompts are chats and the model's template cannot write the first of them."""
    if isinstance(prompts[0]["prompt"], list):
        with reading("model", "a chat template that writes the dataset's prompts", config.model or "the small decoder"):
            tokenizer.apply_chat_template(prompts[0]["prompt"], add_generation_prompt=True, tokenize=False)


def load_tokenizer(config: TrainConfig) -> Any:
    """Load the model's tokenizer; a model without one can still do the sum task with the testbed's.

    Raises:
        ValueError: There is no such model, or no tokenizer that fits it.
    """
    if config.model is None:
        return decoder.build_tokenizer()
    from transformers import AutoConfig, AutoTokenizer

    model = pretrained.resolve_model(config.model)
    with reading("model", "a folder or hub name of a causal language model", model):
        vocab_size = AutoConfig.from_pretrained(model, trust_remote_code=False).get_text_config().vocab_size
        has_tokenizer = not Path(model).is_dir() or any(
            any(Path(model).glob(name)) for name in ("tokenizer*", "*vocab*")
        )
        if has_tokenizer:
            tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False, padding_side="left")
        elif config.dataset is None and config.task is None:
            tokenizer = decoder.build_tokenizer()
        else:
            raise invalid("model", "a folder that also holds a tokenizer", repr(model))
        if len(tokenizer) > vocab_size:
            raise invalid(
                "model", f"a tokenizer of at most {vocab_size} ids, the model's vocabulary", f"{len(tokenizer)} ids"
            )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def model_folder(config: TrainConfig, progress: Progress | None = None) -> str:
    """Return the folder or hub name of the model; the small decoder is warmed up first when no run has before."""
    if config.model is None:
        return str(decoder.cached_checkpoint(progress=progress))
    return pretrained.resolve_model(config.model, progress)


def check_weights(model: Any, name: str) -> None:
    """Raise ValueError if a loaded model lacks weights, which are random then, or has one that is not finite.

    Args:
        model: The model.
        name: The folder or hub name that it was loaded from.
    """
    pretrained.check_finite(model, name)
    from safetensors import safe_open

    stored: set[str] = set()
    for path in Path(name).glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            stored.update(file.keys())
    if not stored or stored >= {key for key, _ in model.named_parameters()}:
        return
    # Names differ: weights may be missing, or transformers knows them under these names. It says which when it loads.
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(name, use_safetensors=True, output_loading_info=True)
    if missing := sorted(loaded[1]["missing_keys"]):
        raise invalid("model", "a model with all its weights", f"{name!r}, which lacks {', '.join(missing[:3])}")
