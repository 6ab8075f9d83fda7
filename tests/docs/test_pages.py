"""The pages do what they say: code runs, commands parse and print what is shown, names exist, the site builds."""

from __future__ import annotations

import doctest
import importlib.util
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file

from entropy_theory import cli
from entropy_theory.theory.verification.catalogue import identifiers

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if "hooks" not in path.parts)
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def hook(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"docs_hook_{name}", DOCS / "hooks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


names, generated = hook("names"), hook("generated")


def blocks(page: Path, language: str) -> list[str]:
    return [body for found, body in FENCE.findall(page.read_text()) if found == language]


def pages_with(language: str) -> list[object]:
    chosen = [page for page in PAGES if page.parent.name == "howto" or page.name == "index.md"]
    return [pytest.param(p, id=p.relative_to(DOCS).as_posix()) for p in chosen if blocks(p, language)]


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that looks like the repository to a reader's commands, and takes what they write."""
    for folder in ("tests", "simulations"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    save_file({"logits": torch.zeros(2, 8)}, tmp_path / "logits.safetensors")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    rules = importlib.import_module("entropy_theory.control.registry")
    monkeypatch.setattr(rules, "REGISTRY", dict(rules.REGISTRY))  # a page's own rule ends with the page
    return tmp_path


@pytest.mark.parametrize("page", pages_with("python"))
def test_python_runs(page: Path, reader: Path) -> None:
    if "bridge.trl" in page.read_text():
        pytest.importorskip("trl", reason="needs the extra train")
    namespace = {"__name__": page.stem}
    for block in blocks(page, "python"):
        exec(compile(block, str(page), "exec", dont_inherit=True), namespace)


@pytest.mark.parametrize("page", pages_with("console"))
def test_commands_print_what_is_shown(page: Path, reader: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    for block in blocks(page, "console"):
        command, _, shown = block.partition("\n")
        program, *words = shlex.split(command.removeprefix("$ "))
        assert program == "entropy-theory"
        assert cli.main(words) == 0
        shown, printed = (re.sub(r"to 1\d digits", "to 15 digits", text) for text in (shown, capsys.readouterr().out))
        assert doctest.OutputChecker().check_output(shown, printed, flags), printed  # the last digit is the machine's


def package_commands() -> Iterator[object]:
    for page in PAGES:
        for command in names.commands(page.read_text()):
            words = shlex.split(command, comments=True)
            for start in (["entropy-theory"], ["-m", "entropy_theory"]):
                for at in range(len(words)):
                    if words[at : at + len(start)] == start and words[at + len(start) :][:1] not in ([], ["COMMAND"]):
                        yield pytest.param(words[at + len(start) :], id=f"{page.stem}: {command}")


@pytest.mark.parametrize("words", list(package_commands()))
def test_commands_parse(words: list[str], reader: Path) -> None:
    name = next(n for n in cli.COMMANDS if words[: n.count(" ") + 1] == n.split())
    config = cli._parse(name, cli.COMMANDS[name], words[name.count(" ") + 1 :])
    assert config is not None


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda p: p.relative_to(ROOT).as_posix())
def test_what_a_page_names_exists(page: Path) -> None:
    assert list(names.problems(page.read_text(), page)) == []


@pytest.mark.parametrize(
    "wrong",
    [
        "`tests/no_such.py`",
        "`tests/oracles.py::no_such`",
        "`et.entropie`",
        "`entropy_theory.theory.categorical.entropie(logits)`",
        "`entropy_theory.control.Rule.aply`",
        "[a link](no_such.md)",
        "```bash\nmake no-such\n```",
        "```bash\nentropy-theory verfy\n```",
        "```bash\npython simulations/no_such.py --quick\n```",
        "```bash\npython simulations/scaling.py --stepps 20\n```",
        "```bash\npip install -e '.[no-such,train]'\n```".replace("no-such", "nosuch"),
    ],
)
def test_a_wrong_name_is_found(wrong: str) -> None:
    assert len(list(names.problems(wrong, DOCS / "index.md"))) == 1


def test_right_names_pass() -> None:
    text = (
        "`et.entropy(logits)` `entropy_theory.control.base.Rule.apply` `tests/conftest.py::tiny_decoder` [x](index.md)"
    )
    assert list(names.problems(text, DOCS / "index.md")) == []


def test_every_statement_has_one_place() -> None:
    placed = [one for page in PAGES for one in generated.statements_of(page.read_text())]
    assert sorted(placed) == sorted(identifiers())


def test_a_statement_links_function_and_test() -> None:
    text = generated.expand("<!-- statement: theorem-3.3 -->", "theory/paper.md")
    assert "[`et.centered_discriminant`][entropy_theory.centered_discriminant]" in text
    test = "test_centered_discriminant_matches_mpmath"
    line = int(re.search(rf"\[`{test}`\]\(../../tests/theory/test_discriminant.py#L(\d+)\)", text)[1])
    assert (ROOT / "tests/theory/test_discriminant.py").read_text().splitlines()[line - 1].startswith(f"def {test}(")


def test_the_site_builds_and_needs_no_network(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="needs the extra docs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for page in (tmp_path / "site").rglob("*.html"):
        text = page.read_text()
        fetched = re.findall(
            r'<(?:script|img|iframe)[^>]* src="(?:https?:)?//[^"]+|<link[^>]*href="(?:https?:)?//', text
        )
        assert not fetched, (page, fetched)
        assert 'class="arithmatex"' not in text, page
        assert "<merror" not in text, page
    assert "<math" in (tmp_path / "site/theory/paper.html").read_text()
