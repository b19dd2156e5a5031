"""Hooks of mkdocs (mkdocs.yml): pages that lie outside docs/ join the site, and links follow them.

The repository is written to be read where it lies, so a link is relative to its file. On the site it leads to the page
made of that file; a link to code, which is no page, becomes plain text.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

# Where a page lies in the repository -> its name on the site.
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "results/README.md": "records.md",
    "pcbench/tiny/README.md": "tiny.md",
}
FOLDERS = {"docs/figures": "docs/figures/claims.md", "docs/tables": "docs/tables/table1.md"}  # and a page of each
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((?!https?:|mailto:|#)([^)#\s]+)(#[^)\s]*)?\)|!\[([^\]]*)\]\(([^)\s]+)\)")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages from outside docs/."""
    from mkdocs.structure.files import File

    root = Path(config.config_file_path).parent
    for source, name in PAGES.items():
        files.append(File.generated(config, name, content=(root / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The page with its links led to pages of the site."""
    name = page.file.src_uri
    source = next((path for path, known in PAGES.items() if known == name), f"docs/{name}")
    return relinked(markdown, source)


def relinked(markdown: str, source: str) -> str:
    """Markdown of a file, `source` in the repository, with links relative to its page on the site."""
    here = posixpath.dirname(_page(source) or "")

    def replaced(match: re.Match[str]) -> str:
        text, target, anchor, picture, file = match.groups()
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target or file))
        page = _page(FOLDERS.get(path, path))
        if page is None:
            return str(text) if file is None else match[0]
        link = posixpath.relpath(page, here or ".")
        return f"[{text}]({link}{anchor or ''})" if file is None else f"![{picture}]({link})"

    return LINK.sub(replaced, markdown)


def _page(path: str) -> str | None:
    """Where a file of the repository is on the site; None if it is not."""
    if path in PAGES:
        return PAGES[path]
    return path.removeprefix("docs/") if path.startswith("docs/") and Path(path).suffix in (".md", ".png") else None
