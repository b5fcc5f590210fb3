"""MkDocs hooks that add linked files from outside docs/ and the configuration keys to the site.

Pages link to files of the repository by relative paths, which work on GitHub. The site includes a copy of each linked
file, and renders the Markdown files in `PAGES`. A link to a missing file stays as it is, and fails the strict build.
"""

import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent

# Markdown file outside docs/ → its page on the site.
PAGES = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "prroi_pool/README.md": "prroi_pool.md",
    "weights/README.md": "weights.md",
}
KEYS = "{{ configuration keys }}\n"
_KEY = re.compile(r"_C\.(?P<name>[A-Z_.]+) = (?P<default>.+?)(?:  # (?P<comment>.+))?")
_LINK = re.compile(r"(?P<start>\]\()(?P<path>[^)\s#:]+)(?P<anchor>#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of `PAGES`."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill in the configuration keys, and point links to files outside docs/ at their copies on the site."""
    if KEYS in markdown:
        markdown = markdown.replace(KEYS, configuration_keys((ROOT / "iounet/config.py").read_text(encoding="utf-8")))
    folder = Path(page.file.abs_src_path or "").resolve().parent

    def replace(link: re.Match[str]) -> str:
        target = (folder / link["path"]).resolve()
        if not target.is_file() or not target.is_relative_to(ROOT):
            return link[0]
        on_site = _place_on_site(target, config, files)
        relative = os.path.relpath(on_site, Path(page.file.src_uri).parent)
        return f"{link['start']}{relative}{link['anchor'] or ''})"

    return _LINK.sub(replace, markdown)


def configuration_keys(source: str) -> str:
    """Return one table per section of iounet/config.py, with its keys, their defaults and their comments."""
    lines: list[str] = []
    above: list[str] = []
    for line in source.splitlines():
        key = _KEY.fullmatch(line)
        if key is None:
            above = [*above, line.removeprefix("# ")] if line.startswith("# ") else []
            continue
        if key["default"] == "CfgNode()":
            lines += ["", f"## {key['name']}", "", "| key | default | meaning |", "| --- | --- | --- |"]
        else:
            lines = lines or ["", "| key | default | meaning |", "| --- | --- | --- |"]
            meaning = " ".join([*above, key["comment"] or ""]).strip().replace("|", "\\|")
            lines.append(f"| `{key['name'].rpartition('.')[2]}` | `{key['default']}` | {meaning} |")
        above = []
    return "\n".join(lines) + "\n"


def _place_on_site(target: Path, config: MkDocsConfig, files: Files) -> str:
    """Return the site path of a file in the repository, and add a copy to the site if the file is not there yet."""
    source = target.relative_to(ROOT).as_posix()
    if source in PAGES:
        return PAGES[source]
    in_docs = source.removeprefix("docs/")
    existing = files.get_file_from_path(in_docs)
    if source != in_docs and existing is not None and existing.inclusion.is_included():
        return in_docs
    # A browser shows a .txt file, but downloads .yaml and .py files.
    copy = f"source/{source}.txt"
    if files.get_file_from_path(copy) is None:
        files.append(File.generated(config, copy, abs_src_path=str(target)))
    return copy
