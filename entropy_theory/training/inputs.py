"""What a run is given besides its configuration: prompts, reward, model folder and tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from entropy_theory.errors import invalid, one_line
from entropy_theory.testbed import decoder, sum_task
from entropy_theory.training.config import TrainConfig
from entropy_theory.training.rewards import Reward, SumReward, guarded_reward, load_reward

if TYPE_CHECKING:
    from datasets import Dataset

Progress = Callable[[int, int, str], None]

SUM_TASK_ROWS = 2048


def load_task(config: TrainConfig) -> tuple[Dataset, Reward]:
    """Load the prompts and the reward function of a run, its own or those of the sum task.

    Raises:
        ValueError: The dataset or the reward cannot be used.
    """
    if config.dataset is None:
        return sum_task.dataset(SUM_TASK_ROWS, config.seed), guarded_reward(SumReward(config.generations), "sum task")
    prompts = load_prompts(config.dataset, config.dataset_split)
    return prompts, guarded_reward(load_reward(str(config.reward)), str(config.reward))


def load_prompts(name: str, split: str) -> Dataset:
    """Load a dataset with a ``prompt`` column from a file, a folder or the hub.

    Raises:
        ValueError: It cannot be loaded, has no rows or lacks the column.
    """
    import datasets

    path = Path(name)
    builders = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
    try:
        if path.is_file():
            if path.suffix not in builders:
                raise invalid("dataset", f"a file ending in {', '.join(builders)}", name)
            data = datasets.load_dataset(builders[path.suffix], data_files=name, split="train")
        elif path.is_dir() and ((path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists()):
            data = datasets.load_from_disk(name)
            data = data[split] if isinstance(data, datasets.DatasetDict) else data
        else:
            data = datasets.load_dataset(name, split=split)
    except (OSError, KeyError, datasets.exceptions.DatasetsError) as error:
        raise invalid("dataset", "a file, folder or hub name that loads", f"{name!r} ({one_line(error)})") from None
    if "prompt" not in data.column_names:
        raise invalid("dataset", "a column named prompt", f"{name!r} with {', '.join(data.column_names)}")
    if not len(data):
        raise invalid("dataset", "at least one row", f"{name!r} with none")
    return data


def load_tokenizer(config: TrainConfig) -> Any:
    """Load the model's tokenizer; a model without one can still do the sum task with the testbed's.

    Raises:
        ValueError: There is no such model, or no tokenizer that fits it.
    """
    model = config.model
    if model is None:
        return decoder.build_tokenizer()
    from transformers import AutoConfig, AutoTokenizer

    try:
        vocab_size = AutoConfig.from_pretrained(model, trust_remote_code=False).get_text_config().vocab_size
    except (OSError, ValueError) as error:
        raise invalid(
            "model", "a folder or hub name of a causal language model", f"{model!r} ({one_line(error)})"
        ) from None
    has_tokenizer = not Path(model).is_dir() or any(Path(model).glob("tokenizer*")) or any(Path(model).glob("*vocab*"))
    if has_tokenizer:
        tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False, padding_side="left")
    elif config.dataset is None:
        tokenizer = decoder.build_tokenizer()
    else:
        raise invalid("model", "a folder that also holds a tokenizer", f"{model!r}")
    if len(tokenizer) > vocab_size:
        raise invalid(
            "model", f"a tokenizer of at most {vocab_size} ids, the model's vocabulary", f"{len(tokenizer)} ids"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def model_folder(config: TrainConfig, progress: Progress | None = None) -> str:
    """Return the folder or hub name of the model; the small decoder is warmed up first when no run has before."""
    return config.model or str(decoder.cached_checkpoint(progress=progress))
