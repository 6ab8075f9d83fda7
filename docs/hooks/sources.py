"""Links that leave docs/ lead to a page with the file's text, one anchor per line: `../tests/oracles.py#L12`.

So a link works on a code host and in the site alike, and the site needs no host.
"""

from __future__ import annotations

import re
from pathlib import Path
from posixpath import normpath, relpath
from typing import Any

from generated import ROOT, expand
from mkdocs.structure.files import File
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import TextLexer, get_lexer_for_filename
from pygments.util import ClassNotFound

LINK = re.compile(r"(?<=\]\()([^)\s#]+)(#L\d+)?(?=\))")
BINARY = (".png", ".pdf", ".svg", ".npz", ".safetensors")
LONGEST = 300_000


def on_files(files: Any, config: Any) -> Any:
    """Add a page for every file that some page links to."""
    pages = [file for file in files if file.src_uri.endswith(".md")]
    targets = {
        target
        for file in pages
        for match in LINK.finditer(expand(Path(file.abs_src_path).read_text(), file.src_uri))
        if (target := outside(match[1], file.src_uri))
    }
    for target in sorted(targets):
        if Path(target).suffix in BINARY:
            files.append(File.generated(config, place(target), content=(ROOT / target).read_bytes()))
        else:
            files.append(File.generated(config, place(target), content=source_page(target)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point links that leave docs/ at those pages."""
    here = page.file.src_uri

    def replacement(match: re.Match[str]) -> str:
        target = outside(match[1], here)
        if target is None:
            return match[0]
        line = match[2].replace("#L", "#L-") if match[2] else ""
        return relpath(place(target), str(Path(here).parent)) + line

    return LINK.sub(replacement, markdown)


def outside(link: str, page: str) -> str | None:
    """Name the file of the repository that a link of a page leads to, or None when it stays within docs/."""
    if "://" in link:
        return None
    path = normpath(f"docs/{Path(page).parent}/{link}")
    return path if not path.startswith("docs/") and (ROOT / path).is_file() else None


def place(path: str) -> str:
    """Say where in the site a file of the repository is: as a page, or as it is."""
    return f"source/{path}" if Path(path).suffix in BINARY else f"source/{path}.md"


def source_page(path: str) -> str:
    """Write the page of a file: raw HTML, because mkdocs finds the anchors of that only."""
    text = (ROOT / path).read_text()
    if len(text) > LONGEST:
        text = text[:LONGEST] + "\n… (cut)"
    try:
        lexer = get_lexer_for_filename(path)
    except ClassNotFound:
        lexer = TextLexer()
    code = highlight(text, lexer, HtmlFormatter(cssclass="highlight", wrapcode=True, lineanchors="L", linespans="line"))
    return f"---\nsearch: {{exclude: true}}\nhide: [navigation, toc]\n---\n# {path}\n\n{code}"
