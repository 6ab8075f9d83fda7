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
from quoted_records import figures, record
from safetensors.torch import save_file

from entropy_theory import cli
from entropy_theory.theory.verification.catalogue import identifiers

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
PAGES = sorted(path for path in DOCS.rglob("*.md") if "hooks" not in path.parts)
ALL_PAGES = [README, ROOT / "ARCHITECTURE.md", ROOT / "CONTRIBUTING.md", *PAGES]
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
    chosen = [README, *(page for page in PAGES if page.parent.name == "howto" or page.name == "index.md")]
    return [pytest.param(p, id=p.relative_to(ROOT).as_posix()) for p in chosen if blocks(p, language)]


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
    for page in ALL_PAGES:
        inline = re.findall(r"`(entropy-theory [^`\n]+)`", page.read_text()) if page == README else []
        for command in [*names.commands(page.read_text()), *inline]:
            words = shlex.split(command, comments=True)
            for start in (["entropy-theory"], ["-m", "entropy_theory"]):
                for at in range(len(words)):
                    if words[at : at + len(start)] == start and words[at + len(start) :][:1] not in ([], ["COMMAND"]):
                        yield pytest.param(words[at + len(start) :], id=f"{page.stem}: {command}")


@pytest.mark.parametrize("words", list(package_commands()))
def test_commands_parse(words: list[str], reader: Path) -> None:
    name = next(n for n in cli.COMMANDS if words[: n.count(" ") + 1] == n.split())
    config = cli.parse(name, words[name.count(" ") + 1 :])
    assert config is not None


@pytest.mark.parametrize("page", ALL_PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
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


def test_the_readme_is_read_in_a_minute_and_the_start_page_agrees() -> None:
    text = README.read_text()
    assert len(text.splitlines()) <= 120
    collapse = re.search(r"^\*\*Entropy collapse\.\*\*.*?(?=\n\n)", text, re.MULTILINE | re.DOTALL)[0]
    assert collapse in (DOCS / "index.md").read_text()


NOT_CLAIMS = r"arXiv [\d.]+|Theorem [\d.]+|(Python|torch|transformers|TRL)( ≥)? [\d.]+( to [\d.]+)?|\]\([^)]*\)"
NUMBER = re.compile(r"\d+\.\d+|\d+ %|\d{1,3},\d{3}")
COMMAND = re.compile(r"`(make|python|entropy-theory) [^`]+`")


def claims(markdown: str) -> Iterator[str]:
    """Paragraphs, list items and rows of tables that have a number outside code."""
    for block in re.split(r"\n\n|\n(?=[-|] ?)", re.sub(r"^```.*?^```$", "", markdown, flags=re.MULTILINE | re.DOTALL)):
        prose = re.sub(NOT_CLAIMS, "", re.sub(r"`[^`]*`", "", block))
        if NUMBER.search(prose):
            yield block


def test_every_number_of_the_readme_has_its_command() -> None:
    found = list(claims(README.read_text()))
    assert len(found) >= 8
    assert [block for block in found if not COMMAND.search(block)] == []
    assert (
        len(list(claims("It ends at 0.29 nats\n\n| a | 52 % |\n\nBy arXiv 2602.03392, Theorem 3.3, on TRL 1.16."))) == 2
    )


def test_the_readme_has_the_numbers_of_the_records() -> None:
    contest = {task: record("control_contest_contest")[task]["methods"] for task in ("sum", "arithmetic")}
    rows, named = contest["sum"], ("clip-b", "entropy-flow", "adaptive-entropy", "entropy-floor", "clip-cov")

    def numbers(row: dict) -> str:
        measured = figures(row["distinct_right"], 1), figures(row["reward"], 2), figures(row["entropy"], 2)
        return ", ".join(measured) + " nats"

    late = record("control_contest_long")["methods"]

    def end(row: dict) -> str:
        return f"{row['distinct_right']:.1f}, {row['reward']:.2f}, {row['entropy']:.2f} nats"

    costs = [-contest["arithmetic"][method]["reward_over_base"]["mean"] for method in named]
    drops = record("hyperparameter_sweep")["drops"]["V=100, n=102400"]
    shared = record("shared_parameters")["findings"]
    assert drops["clip-b(mu=2.5)"] == drops["clip-v(mu=8.5)"] == 0
    sign = [re.search(r"sign of the whole realised change at (\d+)%", sentence)[1] for sentence in shared[:2]]
    expected = (
        *(f"`{rows[method]['rule']}` |" for method in named),
        *(f"| {numbers(rows[method])} | {end(late[method])} |" for method in named),
        f"| {numbers(rows['none'])}; two updates: {numbers(rows['none, two updates'])} |",
        f"| {end(late['none'])}; {end(late['none, two updates'])} |",
        *(
            f"{rows[m]['dropped_share']['mean']:.1%}".replace("%", " % of the tokens")
            for m in ("clip-b", "entropy-floor", "clip-cov")
        ),
        f"{rows['entropy-flow']['updates_to_reward']['mean']:.0f} updates to a reward, "
        f"{rows['none']['updates_to_reward']['mean']:.0f} without",
        f"the five cost {min(costs):.2f} to {max(costs):.2f} of reward".replace("0.", "."),
        "0 of 102,400 tokens",
        f"at {sign[0]} % of the positions under SGD and at {sign[1]} % under AdamW",
    )
    text = " ".join(README.read_text().split())
    assert [words for words in expected if words not in text] == []


def test_the_readme_and_the_findings_show_the_same_demo() -> None:
    row = r"^\| (?:GRPO|Clip_B|random mask) \| `[^`]+` \| ([\d.]+) .*?\| ([\d.]+) .*?\| ([\d.]+) "
    grpo, clip_b, random = re.findall(row, (DOCS / "findings.md").read_text(), re.MULTILINE)
    text = " ".join(README.read_text().split())
    assert f"GRPO ends at {grpo[0]} nats with {grpo[2]} distinct right answers" in text
    assert f"it ends at {clip_b[0]} nats with {clip_b[2]}, at a reward within the intervals" in text
    assert f"({clip_b[1]} against {grpo[1]})" in text
    assert f"does not help ({random[0]} nats)" in text


def test_the_readme_names_the_tested_versions() -> None:
    tested = dict(re.findall(r"^([\w-]+)==(\d+\.\d+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    named = f"torch {tested['torch']}, transformers {tested['transformers']} and TRL {tested['trl']}"
    assert named in README.read_text()
    released = re.findall(r"^\| (1\.\d+)\.\d+ \|.*passed \|$", (DOCS / "trl_versions.md").read_text(), re.MULTILINE)
    assert f"TRL {released[0]} to {released[-1]} is supported" in README.read_text()


def test_the_messages_of_the_troubleshooting_page_are_those_of_the_package() -> None:
    sources = [path.read_text() for path in [*(ROOT / "entropy_theory").rglob("*.py"), ROOT / "Makefile"]]
    headings = re.findall(r"^### (.*)$", (DOCS / "troubleshooting.md").read_text(), re.MULTILINE)
    messages = [code for heading in headings if heading.startswith("`") for code in re.findall(r"`([^`]+)`", heading)]
    messages = [m for m in messages if " " in m and not m.startswith("cannot import")]  # that one is Python's
    assert len(messages) >= 25
    for message in messages:
        name, _, words = message.rpartition(": expected ") if ": expected " in message else ("", "", message)
        words = words.removeprefix("expected ")
        pieces = [piece.strip(" :;,'") for piece in re.split(r"\b[A-Z][A-Z]+\b|\b[NM]\b|>=1.*|\bnan\b", words)]
        near = re.compile(".{0,120}?".join(re.escape(piece) for piece in pieces if piece), re.DOTALL)  # one statement
        assert any(name in source and near.search(source) for source in sources), message


def test_every_module_has_a_place_in_the_api() -> None:
    shown = "\n".join(generated.expand(page.read_text(), f"api/{page.name}") for page in (DOCS / "api").glob("*.md"))
    paths = [path.relative_to(ROOT).with_suffix("") for path in (ROOT / "entropy_theory").rglob("*.py")]
    modules = [".".join(path.parts) for path in paths if not any(part.startswith("_") for part in path.parts)]
    assert [module for module in modules if f"::: {module}\n" not in shown + "\n"] == []


def test_links_of_pages_outside_docs_do_not_depend_on_where_the_checkout_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mkdocs", reason="needs the extra docs")
    monkeypatch.syspath_prepend(DOCS / "hooks")
    monkeypatch.chdir(tmp_path)
    sources = hook("sources")
    links = "[a](docs/glossary.md#x) [b](CHANGELOG.md) [c](tests/oracles.py#L3) [d](https://e.org/f)"
    text = sources.LINK.sub(lambda match: sources.pointed(match, "../README.md", "source/README.md"), links)
    assert text == "[a](../glossary.md#x) [b](CHANGELOG.md) [c](tests/oracles.py.md#L-3) [d](https://e.org/f)"


def test_the_architecture_shows_every_room() -> None:
    tree = (ROOT / "ARCHITECTURE.md").read_text().split("```")[1]
    entries = [path for path in (ROOT / "entropy_theory").iterdir() if not path.name.startswith("_")]
    rooms = [f"{path.name}/" for path in entries if (path / "__init__.py").is_file()]
    modules = [path.name for path in entries if path.suffix == ".py"]
    assert [name for name in [*rooms, *modules] if f" {name}" not in tree] == []


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
