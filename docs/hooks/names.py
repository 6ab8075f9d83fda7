"""Holds every page to what exists: files, functions, tests, rules, commands and make targets that it names.

Looks at inline code, at fenced shell commands and at relative links. Nothing is imported that the package does not
import by itself when it is only asked for names, and torch never is.
"""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from functools import cache
from logging import getLogger
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

_FENCE = re.compile(r"^( *)(```+|~~~+)(?P<info>[^\n]*)\n(?P<body>.*?)^\1\2 *$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_LINK = re.compile(r"\]\((?![a-z+]+:)([^)\s#]+)(?:#[^)\s]*)?\)")
_FOLDERS = "benchmarks|docs|entropy_theory|paper_figures|proofs|simulations|tests"
_PATH = re.compile(rf"((?:{_FOLDERS})/[\w./-]*)(?:::(\w+))?")
_DOTTED = re.compile(r"(et|entropy_theory)((?:\.[A-Za-z_]\w*)+)(\(.*\))?")
_CODE_ELEMENT = re.compile(
    r"(<a\b[^>]*>|<autoref\b[^>]*>)?<code>(et|entropy_theory)((?:\.[A-Za-z_]\w*)+)(\([^<]*\))?</code>"
)
_SHELL = ("bash", "sh", "shell", "console")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> None:
    """Warn of what a page names and does not exist; `strict` makes a warning an error."""
    if not page.file.generated_by:
        for problem in problems(markdown, ROOT / "docs" / page.file.src_uri):
            getLogger("mkdocs.hooks.names").warning("%s: %s", page.file.src_uri, problem)


def on_page_content(html: str, page: Any, **_: Any) -> str:
    """Link the package's names in inline code to the API."""
    return html if page.file.src_uri.startswith(("api/", "source/")) else _CODE_ELEMENT.sub(_linked, html)


def _linked(match: re.Match[str]) -> str:
    inside_link, root, rest, call = match.groups()
    if inside_link:
        return match[0]
    return f'<autoref optional identifier="entropy_theory{rest}"><code>{root}{rest}{call or ""}</code></autoref>'


def problems(markdown: str, path: Path) -> Iterator[str]:
    """Find what a page names and does not exist.

    Args:
        markdown: Its text.
        path: Where it lies, which relative links start from.
    """
    prose = _FENCE.sub("", markdown)
    for code in _CODE.findall(prose):
        if _PATH.fullmatch(code) or _DOTTED.fullmatch(code):
            if not _exists(code):
                yield f"no {code}"
        elif code.startswith(("entropy-theory ", "make ")) and (problem := _command_problem(code)):
            yield problem
    for command in commands(markdown):
        if problem := _command_problem(command):
            yield problem
    for link in _LINK.findall(_CODE.sub("", prose)):
        if not (path.parent / link).exists():
            yield f"a link to {link}, which does not exist"


def commands(markdown: str) -> Iterator[str]:
    """List the commands in a page's shell blocks; of a console block, those after its prompts."""
    for match in _FENCE.finditer(markdown):
        language = match["info"].strip().split(" ")[0]
        if language not in _SHELL:
            continue
        lines = match["body"].replace("\\\n", " ").splitlines()
        if language == "console":
            lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        yield from (" ".join(line.split()) for line in lines if line.strip() and not line.lstrip().startswith("#"))


def _exists(code: str) -> bool:
    if named := _PATH.fullmatch(code):
        return _has_file(*named.groups())
    root, rest, _ = _DOTTED.fullmatch(code).groups()
    return _has_name(rest[1:].split("."), public=root == "et")


def _has_file(name: str, definition: str | None) -> bool:
    path = ROOT / name
    if name in (ROOT / ".gitignore").read_text().splitlines():  # what commands write
        return definition is None
    if definition is None or not path.is_file():
        return path.exists() and definition is None
    return re.search(rf"^(async )?(def|class) {definition}\b", path.read_text(), re.MULTILINE) is not None


def _has_name(parts: list[str], public: bool) -> bool:
    """Follow modules, then what they define, then attributes of classes, without importing anything."""
    folder, tree = ROOT / "entropy_theory", _tree(ROOT / "entropy_theory" / "__init__.py")
    if public:
        return parts[0] in ast.literal_eval(_definitions(tree)["__all__"].value)
    for position, part in enumerate(parts):
        if (folder / part).is_dir():
            folder, tree = folder / part, _tree(folder / part / "__init__.py")
        elif (folder / f"{part}.py").is_file():
            tree = _tree(folder / f"{part}.py")
        else:
            return _defines(tree, parts[position:])
    return True


def _defines(tree: ast.AST, parts: list[str]) -> bool:
    found = _definitions(tree).get(parts[0])
    if found is None:
        return False
    if isinstance(found, ast.ImportFrom) and (found.module or "").startswith("entropy_theory."):
        return _has_name([*found.module.split(".")[1:], *parts], public=False)  # where it is defined
    return len(parts) == 1 or not isinstance(found, ast.ClassDef) or _defines(found, parts[1:])


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def _definitions(tree: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for node in tree.body:
        match node:
            case ast.FunctionDef() | ast.ClassDef():
                found[node.name] = node
            case ast.ImportFrom() | ast.Import():
                found |= {(alias.asname or alias.name): node for alias in node.names}
            case ast.Assign():
                found |= {target.id: node for target in node.targets if isinstance(target, ast.Name)}
            case ast.AnnAssign(target=ast.Name()):
                found[node.target.id] = node
    return found


def _command_problem(command: str) -> str | None:
    """Say what is wrong with a command, or None: its program, make target, subcommand, script or extra."""
    words = shlex.split(command, comments=True)
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words = words[1:]
    match words:
        case ["make", target, *_] if "=" not in target:
            known = re.search(rf"^{re.escape(target)}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
            return None if known else f"no target in the Makefile: {command}"
        case ["entropy-theory", first, *rest] if not first.startswith("-") and first != "COMMAND":
            from entropy_theory.cli import COMMANDS

            known = any([first, *rest][: name.count(" ") + 1] == name.split() for name in COMMANDS)
            return None if known else f"no such command: {command}"
        case ["python", script, *options] if script.endswith(".py") and "/" in script and not script.startswith("/"):
            return _script_problem(ROOT / script, options)
        case [("pip" | "python"), *_]:
            extras = re.findall(r"(?:entropy-theory|\.)\[([\w,]+)\]", command)
            text = (ROOT / "pyproject.toml").read_text()
            unknown = [e for e in ",".join(extras).split(",") if e and not re.search(rf"^{e} = \[", text, re.MULTILINE)]
            return f"no extra {', '.join(unknown)}: {command}" if unknown else None
    return None


def _script_problem(script: Path, options: list[str]) -> str | None:
    """Look for a script, and for its options among the fields that it and its neighbours define."""
    if not script.is_file():
        return f"no {script.relative_to(ROOT)}"
    text = "".join(path.read_text() for path in script.parent.glob("*.py"))
    for option in (word for word in options if word.startswith("--")):
        name = option[2:].partition("=")[0].removeprefix("no-").replace("-", "_")
        if option not in text and not re.search(rf"\b{name}: ", text):
            return f"{script.relative_to(ROOT)} has no {option}"
    return None
