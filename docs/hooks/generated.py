"""Puts what the package knows about itself into the pages, so that it is written once.

    <!-- statement: theorem-3.3 -->   a statement: words, formula, assumptions, checks with function, tests
    <!-- statements -->               the list of all statements
    <!-- modules: vocab -->           the public modules of a room, for the API pages

Everything comes from `theory.verification.catalogue` and the package's files. GitHub shows nothing there.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from entropy_theory.errors import invalid
from entropy_theory.theory.verification.catalogue import STATEMENTS, statement
from entropy_theory.theory.verification.evidence import Statement
from entropy_theory.theory.verification.kernel import kernel_checks
from entropy_theory.theory.verification.marked_tests import holding

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "entropy_theory"
MARKER = re.compile(r"^<!-- (statement|modules): (\S+) -->$|^<!-- (statements) -->$", re.MULTILINE)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Expand the markers of a page."""
    return expand(markdown, page.file.src_uri)


def expand(markdown: str, page: str) -> str:
    """Replace each marker by what it stands for.

    Args:
        markdown: The text.
        page: Its path below docs/, which relative links start from.
    """
    up = "../" * (page.count("/") + 1)

    def replacement(match: re.Match[str]) -> str:
        kind, argument, listing = match.groups()
        if listing:
            return statement_list(page)
        return statement_block(statement(argument), up) if kind == "statement" else module_directives(argument)

    return MARKER.sub(replacement, markdown)


def statement_block(one: Statement, up: str) -> str:
    """Write a statement as Markdown; `up` leads from the page to the root of the repository."""
    formulas = re.split(r"(?<=[,;])\\quad", one.formula)
    checks = [f"- **{check.kind.value}**: {check.name}. {subject_link(check.subject)}" for check in one.checks]
    checks += [
        f"- **{check.kind.value}**: {check.name}. "
        + ", ".join(f"[`{path}`]({up}{path})" for path in check.subject.split(", "))
        for check in kernel_checks(one.identifier)
    ]
    tests = [f"- tests: {', '.join(test_link(test, up) for test in holding(one.identifier))}"]
    return "\n".join(
        [
            f"### {one.title} {{#{one.identifier}}}",
            "",
            f'<p class="source"><code>{one.identifier}</code> {one.source}</p>',
            "",
            re.sub(r"e\^\{[^}]*\}", r"$\g<0>$", one.text),
            "",
            *(f"$$\n{formula.strip()}\n$$\n" for formula in formulas),
            f"Assumes: {'; '.join(one.assumptions)}.".replace("<", "&lt;"),
            "",
            *checks,
            *tests,
            "",
        ]
    )


def statement_list(page: str) -> str:
    """List all statements with the page that holds each, the nearest link first."""
    where = {one: path for path in sorted((ROOT / "docs").rglob("*.md")) for one in statements_of(path.read_text())}
    lines = ["| statement | | source | evidence |", "| --- | --- | --- | --- |"]
    for one in STATEMENTS:
        if one.identifier not in where:
            raise invalid("statement", "a page with its marker", one.identifier)
        target = where[one.identifier].relative_to(ROOT / "docs").as_posix()
        link = "" if target == page else "../" * page.count("/") + target
        checks = (*kernel_checks(one.identifier), *one.checks)
        kinds = ", ".join(dict.fromkeys(check.kind.value for check in checks))
        lines.append(f"| [{one.title}]({link}#{one.identifier}) | `{one.identifier}` | {one.source} | {kinds} |")
    return "\n".join(lines)


def statements_of(markdown: str) -> list[str]:
    """Name the statements whose markers a page has."""
    return [match[2] for match in MARKER.finditer(markdown) if match[1] == "statement"]


def subject_link(subject: str) -> str:
    """Link a function to its place in the API."""
    public = re.fullmatch(r"entropy_theory\.(\w+)", subject)
    return f"[`{f'et.{public[1]}' if public else subject.removeprefix('entropy_theory.')}`][{subject}]"


def test_link(test: str, up: str) -> str:
    """Link a test to its line."""
    path, name = test.split("::")
    return f"[`{name}`]({up}{path}#L{line_of(ROOT / path, name)})"


def line_of(path: Path, name: str) -> int:
    """Find the line on which a function or class begins.

    Raises:
        ValueError: The file does not define it.
    """
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if re.match(rf"(def|class) {re.escape(name)}\b", line):
            return number
    raise invalid("test", f"a name that {path.name} defines", name)


def module_directives(room: str) -> str:
    """Ask mkdocstrings for every public module of a room and of the folders in it, or for one module."""
    folder = PACKAGE / room
    paths = (
        sorted(folder.rglob("*.py"), key=lambda p: (p.parent, p.name))
        if folder.is_dir()
        else [folder.with_suffix(".py")]
    )
    modules = [path.relative_to(ROOT).with_suffix("").parts for path in paths]
    public = [".".join(parts) for parts in modules if not any(part.startswith("_") for part in parts)]
    return "\n\n".join(f"::: {name}" for name in public)
