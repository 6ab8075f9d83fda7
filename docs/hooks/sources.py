"""Links that leave docs/ lead to a page with the file's text, one anchor per line: `../tests/oracles.py#L12`.

So a link works on a code host and in the site alike, and the site needs no host. Markdown files outside docs/, such as
ARCHITECTURE.md, become pages.
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

LINK = re.compile(r"(?<=\]\()([^)\s#]+)(#[^)\s]*)?(?=\))")
BINARY = (".png", ".pdf", ".svg", ".npz", ".safetensors")
LONGEST = 300_000


def on_files(files: Any, config: Any) -> Any:
    """Add a page for every file that some page links to, and for the files that those pages link to."""
    texts = {f.src_uri: expand(Path(f.abs_src_path).read_text(), f.src_uri) for f in files if f.src_uri.endswith(".md")}
    targets: set[str] = set()
    while texts:
        linked = {
            target
            for page, text in texts.items()
            for match in LINK.finditer(text)
            if (target := outside(match[1], page))
        }
        texts = {f"../{new}": (ROOT / new).read_text() for new in linked - targets if new.endswith(".md")}
        targets |= linked
    for target in sorted(targets):
        if Path(target).suffix in BINARY:
            files.append(File.generated(config, place(target), content=(ROOT / target).read_bytes()))
        else:
            files.append(File.generated(config, place(target), content=source_page(target)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point links that leave docs/ at those pages."""
    here = page.file.src_uri
    return markdown if page.file.generated_by else LINK.sub(lambda match: pointed(match, here, here), markdown)


def pointed(match: re.Match[str], page: str, place_of_page: str) -> str:
    """Write a link of a page anew, as the site has it.

    Args:
        match: The link.
        page: Where the page's text lies, relative to docs/.
        place_of_page: Where the site has it.
    """
    target, start, anchor = outside(match[1], page), str(Path(place_of_page).parent), match[2] or ""
    if target is not None:
        return relpath(place(target), start) + re.sub(r"^#L(?=\d+$)", "#L-", anchor)
    if page == place_of_page or "://" in match[1]:
        return match[0]
    return relpath(normpath(f"docs/{Path(page).parent}/{match[1]}").removeprefix("docs/"), start) + anchor


def outside(link: str, page: str) -> str | None:
    """Name the file of the repository that a link of a page leads to, or None when it stays within docs/."""
    if "://" in link:
        return None
    path = normpath(f"docs/{Path(page).parent}/{link}")
    return path if not path.startswith("docs/") and (ROOT / path).is_file() else None


def place(path: str) -> str:
    """Say where in the site a file of the repository is: as a page, or as it is."""
    return f"source/{path}" if Path(path).suffix in (*BINARY, ".md") else f"source/{path}.md"


def source_page(path: str) -> str:
    """Write the page of a file: its Markdown, or raw HTML, because mkdocs finds the anchors of that only."""
    text = (ROOT / path).read_text()
    if path.endswith(".md"):
        return LINK.sub(lambda match: pointed(match, f"../{path}", place(path)), text)
    if len(text) > LONGEST:
        text = text[:LONGEST] + "\n… (cut)"
    try:
        lexer = get_lexer_for_filename(path)
    except ClassNotFound:
        lexer = TextLexer()
    code = highlight(text, lexer, HtmlFormatter(cssclass="highlight", wrapcode=True, lineanchors="L", linespans="line"))
    return f"---\nsearch: {{exclude: true}}\nhide: [navigation, toc]\n---\n# {path}\n\n{code}"
