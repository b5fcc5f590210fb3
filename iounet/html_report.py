"""Write a report as a single, self-contained HTML page: facts, tables, plots and pictures."""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from .files import write_text

_JPEG_QUALITY = 90

# With this policy, the browser refuses every request to the network.
_HEAD = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
"""

# Dark colours are for screens only: on paper they would cost ink and contrast.
_STYLE = """\
:root { color-scheme: light; --page: #fff; --text: #1f2328; --muted: #59636e; --line: #d1d9e0; --panel: #f6f8fa;
  --gain: #1a7f37; --loss: #b3261e; }
@media screen and (prefers-color-scheme: dark) {
  :root { color-scheme: dark; --page: #15181c; --text: #e4e7ea; --muted: #9aa4ae; --line: #363d45; --panel: #1e2328;
    --gain: #7cc48a; --loss: #ee9a92; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 65rem; background: var(--page); color: var(--text);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif;
  overflow-wrap: anywhere; text-size-adjust: 100%; -webkit-text-size-adjust: 100%; }
h1 { margin: 0 0 1.25rem; font-size: 1.9rem; line-height: 1.2; }
h2 { margin: 2.75rem 0 .75rem; font-size: 1.3rem; line-height: 1.3; }
p { margin: .75rem 0; max-width: 44rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .35rem 1.25rem; margin: 0; padding: .9rem 1.1rem;
  background: var(--panel); border: 1px solid var(--line); border-radius: .5rem; font-size: .875rem; }
dt { color: var(--muted); }
dd { margin: 0; white-space: pre-wrap; font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.scroll { overflow-x: auto; margin: 1rem 0; }
/* Row heights in whole pixels: fractions are rounded differently for the sticky names and for the numbers. */
table { border-spacing: 0; font-size: 15px; line-height: 24px; font-variant-numeric: tabular-nums;
  overflow-wrap: normal; }
th, td { padding: 6px 12px; vertical-align: top; text-align: right; border-bottom: 1px solid var(--line); }
thead th { color: var(--muted); font-weight: 600; white-space: nowrap; }
th:first-child { position: sticky; left: 0; min-width: 8rem; padding-left: 0; background: var(--page);
  text-align: left; }
tbody th { font-weight: 400; }
td small { display: block; color: var(--muted); font-size: .8em; line-height: 14px; }
td .gain { color: var(--gain); }
td .loss { color: var(--loss); }
figure { margin: 1.25rem 0 1.75rem; }
img { display: block; max-width: 100%; height: auto; border-radius: .25rem; }
figcaption { margin-top: .5rem; max-width: 44rem; color: var(--muted); font-size: .875rem; }
@media (max-width: 36rem) {
  body { padding: 1.25rem .9rem 3rem; }
  h1 { font-size: 1.5rem; }
  dl { display: block; }
  dd + dt { margin-top: .5rem; }
}
@media print {
  body { padding: 0; max-width: none; font-size: 10pt; }
  h2, p { break-after: avoid; }
  dl { break-inside: avoid; }
  figure, tr { break-inside: avoid; }
  img { max-height: 22cm; width: auto; }
  .scroll { overflow: visible; }
  table { font-size: 8pt; line-height: 1.4; }
  th, td { padding: .25rem .4rem; }
}
"""


@dataclass(frozen=True)
class Picture:
    """A picture with its caption.

    Attributes:
        image: A PNG or JPEG file, by path or as bytes, which is embedded unchanged; or a picture in memory, which is
            embedded as PNG or as JPEG of quality 90, whichever is smaller.
        caption: Text below the picture.
        alt: Alternative text for readers who cannot see the picture.
    """

    image: Image.Image | Path | bytes
    caption: str
    alt: str


@dataclass(frozen=True)
class Section:
    """A section of the page: title, text, table and pictures, in this order; empty parts are left out.

    Attributes:
        title: Heading of the section.
        text: Paragraphs, separated by empty lines.
        table: Row → column → number, as for `iounet.evaluation.markdown_table`. The first row defines the columns.
        compared: Whether each row after the first shows its difference from the first; higher counts as better.
        pictures: Pictures, one below the other.
    """

    title: str
    text: str = ""
    table: Mapping[str, Mapping[str, float]] | None = None
    compared: bool = True
    pictures: Sequence[Picture] = ()


def write_html(path: Path, title: str, *, facts: Mapping[str, str], sections: Sequence[Section]) -> None:
    """Write a page that embeds its pictures and style, runs no script and makes no network request.

    Args:
        path: Path of the page; its folder is created if missing.
        title: Title of the page. All text is escaped: `<b>` is shown literally.
        facts: Name → value of facts about the run, such as command and versions; a value may have several lines.
        sections: Sections of the page.

    Raises:
        ValueError: A picture is neither PNG nor JPEG.
        OSError: A picture cannot be read or the page cannot be written. An existing file at `path` is left unchanged.
    """
    body = [f"<h1>{escape(title)}</h1>"]
    if facts:
        entries = [f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items()]
        body.append("\n".join(["<dl>", *entries, "</dl>"]))
    body += [_section(section) for section in sections]
    head = f"{_HEAD}<title>{escape(title)}</title>\n<style>\n{_STYLE}</style>\n</head>"
    page = "\n".join([head, "<body>", "<main>", *body, "</main>", "</body>", "</html>", ""])

    write_text(path, page)


def _section(section: Section) -> str:
    parts = ["<section>", f"<h2>{escape(section.title)}</h2>"]
    parts += [f"<p>{escape(text.strip())}</p>" for text in section.text.split("\n\n") if text.strip()]
    if section.table:
        parts.append(_table(section.table, section.title, section.compared))
    parts += [_figure(picture) for picture in section.pictures]
    return "\n".join([*parts, "</section>"])


def _table(rows: Mapping[str, Mapping[str, float]], name: str, compared: bool) -> str:
    first = next(iter(rows.values()))
    columns = "".join(f'<th scope="col">{escape(column)}</th>' for column in first)
    lines = [f"<thead><tr><th></th>{columns}</tr></thead>", "<tbody>"]
    for row, values in rows.items():
        cells = "".join(
            _cell(values.get(column, math.nan), baseline if compared and values is not first else math.nan)
            for column, baseline in first.items()
        )
        lines.append(f'<tr><th scope="row">{escape(row)}</th>{cells}</tr>')
    # The table may be wider than a phone's screen. A focusable region can be scrolled with the keyboard.
    opening = f'<div class="scroll" role="region" aria-label="{escape(name)}" tabindex="0">'
    return "\n".join([opening, "<table>", *lines, "</tbody>", "</table>", "</div>"])


def _cell(value: float, baseline: float) -> str:
    if math.isnan(value):
        return "<td>–</td>"
    if math.isnan(baseline):
        return f"<td>{_number(value)}</td>"
    difference = round(value - baseline, 1)
    if difference == 0:
        return f"<td>{_number(value)}<small>±0.0</small></td>"
    kind, sign = ("gain", "+") if difference > 0 else ("loss", "")
    return f'<td>{_number(value)}<small class="{kind}">{sign}{_number(difference)}</small></td>'


def _number(value: float) -> str:
    return f"{value:.1f}".replace("-", "−")  # a minus as wide as the plus


def _figure(picture: Picture) -> str:
    kind, content, (width, height) = _encoded(picture)
    source = f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
    return "\n".join(
        [
            "<figure>",
            f'<img alt="{escape(picture.alt)}" width="{width}" height="{height}" src="{source}">',
            f"<figcaption>{escape(picture.caption)}</figcaption>",
            "</figure>",
        ]
    )


def _encoded(picture: Picture) -> tuple[str, bytes, tuple[int, int]]:
    """Return the picture's format ("png" or "jpeg"), its bytes, and its (width, height) in pixels."""
    image = picture.image
    if isinstance(image, Image.Image):
        files = {"png": io.BytesIO()}
        image.save(files["png"], "PNG")  # optimize=True took seconds per page and saved a few per cent
        if image.mode == "RGB":  # JPEG has no transparency and blurs drawings with few colours
            files["jpeg"] = io.BytesIO()
            # subsampling=0 keeps colour at full resolution; otherwise thin coloured lines fade.
            image.save(files["jpeg"], "JPEG", quality=_JPEG_QUALITY, subsampling=0)
        kind = min(files, key=lambda kind: files[kind].tell())
        return kind, files[kind].getvalue(), image.size
    name, content = ("its bytes", image) if isinstance(image, bytes) else (str(image), image.read_bytes())
    try:
        with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as opened:
            return str(opened.format).lower(), content, opened.size
    except UnidentifiedImageError as error:
        raise ValueError(
            f"the picture '{picture.caption}' is neither PNG nor JPEG ({name}); open it with PIL.Image.open and pass "
            "the image instead"
        ) from error
