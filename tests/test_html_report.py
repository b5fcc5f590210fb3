import base64
import io
import math
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from iounet.html_report import Picture, Section, write_html

MAGENTA = (255, 0, 255)
HOSTILE = """<b>"R&D" 'x'</title></style><script>alert(1)</script> &lt;"""
TABLE = {
    "greedy NMS": {"AP": 50.0, "AP90": 5.04, "APl": math.nan},
    "+ refinement": {"AP": 52.26, "AP90": 4.0, "APl": math.nan},
    "the same": {"AP": 50.04, "AP90": math.nan},
}


class Page(HTMLParser):
    """Collects the elements and text of a page, and checks that every end tag closes the innermost element."""

    VOID = {"meta", "img"}

    def __init__(self, html: str):
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict]] = []
        self.words: list[tuple[str, str]] = []  # (innermost element, text)
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        assert len(dict(attributes)) == len(attributes), f"duplicate attribute in <{tag}>"
        self.elements.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.words.append((self.open[-1], data))

    def text(self, tag: str) -> list[str]:
        return [data for element, data in self.words if element == tag]

    def attributes(self, tag: str) -> list[dict]:
        return [attributes for element, attributes in self.elements if element == tag]


def noise(width: int = 64, height: int = 48) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def decoded(attributes: dict) -> tuple[str, bytes]:
    kind, data = re.fullmatch(r"data:image/(png|jpeg);base64,([A-Za-z0-9+/=]+)", attributes["src"]).groups()
    return kind, base64.b64decode(data, validate=True)


@pytest.fixture
def write(tmp_path):
    def write(*sections: Section, title: str = "A run", facts: dict[str, str] | None = None) -> tuple[str, Page]:
        path = tmp_path / "new folder" / "report.html"
        write_html(path, title, facts=facts or {}, sections=sections)
        assert [file.name for file in path.parent.iterdir()] == ["report.html"]
        html = path.read_text(encoding="utf-8")
        return html, Page(html)

    return write


def test_a_page_has_its_parts_in_order(write):
    pictures = [Picture(noise(), "Below the first.", "first"), Picture(noise(), "Below the second.", "second")]
    html, page = write(
        Section("Precision", "One paragraph.\n\nAnother.", TABLE),
        Section("Boxes", pictures=pictures),
        title="Blood cells",
        facts={"command": "python tools/train.py", "versions": "torch 2\nnumpy 3"},
    )
    assert html.startswith("<!doctype html>\n<html lang=")
    assert page.text("title") == page.text("h1") == ["Blood cells"]
    assert page.text("dt") == ["command", "versions"]
    assert page.text("dd") == ["python tools/train.py", "torch 2\nnumpy 3"]
    assert page.text("h2") == ["Precision", "Boxes"]
    assert page.text("p") == ["One paragraph.", "Another."]
    assert page.text("figcaption") == ["Below the first.", "Below the second."]
    assert [image["alt"] for image in page.attributes("img")] == ["first", "second"]
    order = [tag for tag, _ in page.elements if tag in ("h1", "dl", "h2", "table", "img")]
    assert order == ["h1", "dl", "h2", "table", "h2", "img", "img"]


def test_empty_parts_are_left_out(write):
    _, page = write(Section("Nothing"))
    assert not {tag for tag, _ in page.elements} & {"dl", "p", "table", "figure"}


def test_text_is_escaped(write):
    plain, page = write(
        Section(HOSTILE, HOSTILE, {HOSTILE: {HOSTILE: 1.0}}, pictures=[Picture(noise(), HOSTILE, HOSTILE)]),
        title=HOSTILE,
        facts={HOSTILE: HOSTILE},
    )
    for tag in ("title", "h1", "dt", "dd", "h2", "p", "th", "figcaption"):
        assert set(page.text(tag)) == {HOSTILE}, tag
    assert page.attributes("img")[0]["alt"] == HOSTILE
    assert not {tag for tag, _ in page.elements} & {"b", "script"}
    assert plain.count("</style>") == plain.count("</title>") == 1


def test_a_table_aligns_rounds_and_compares_with_its_first_row(write):
    html, page = write(Section("Precision", table=TABLE))
    assert page.text("th") == ["AP", "AP90", "APl", "greedy NMS", "+ refinement", "the same"]
    assert page.text("td") == ["50.0", "5.0", "–", "52.3", "4.0", "–", "50.0", "–", "–"]
    assert page.text("small") == ["+2.3", "−1.0", "±0.0"]
    assert [attributes.get("class") for attributes in page.attributes("small")] == ["gain", "loss", None]
    assert "text-align: right" in html and "tabular-nums" in html


def test_a_value_without_a_baseline_is_not_compared(write):
    _, page = write(Section("Precision", table={"a": {"AP": math.nan}, "b": {"AP": 3.0}}))
    assert page.text("td") == ["–", "3.0"] and page.text("small") == []


def test_a_table_without_comparison(write):
    _, page = write(Section("Latency", table=TABLE, compared=False))
    assert page.text("small") == [] and len(page.text("td")) == 9


def test_every_picture_is_embedded_and_can_be_decoded(write, tmp_path):
    (tmp_path / "plot.png").write_bytes(png(noise(30, 20)))
    of_bytes = png(noise(10, 40))
    images = [tmp_path / "plot.png", of_bytes, noise(50, 60)]
    _, page = write(Section("Pictures", pictures=[Picture(image, "", "") for image in images]))
    found = page.attributes("img")
    for attributes, size in zip(found, [(30, 20), (10, 40), (50, 60)], strict=True):
        kind, content = decoded(attributes)
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            assert image.size == size == (int(attributes["width"]), int(attributes["height"]))
            assert image.format.lower() == kind
    assert decoded(found[0])[1] == (tmp_path / "plot.png").read_bytes()
    assert decoded(found[1])[1] == of_bytes


def test_photographs_become_jpeg_and_drawings_stay_lossless(write):
    drawing = Image.new("RGB", (200, 100), "white")
    drawing.paste(MAGENTA, (20, 20, 60, 60))
    transparent = noise()
    transparent.putalpha(100)
    _, page = write(Section("Pictures", pictures=[Picture(image, "", "") for image in (noise(), drawing, transparent)]))
    (photo, _), (plot, content), (with_alpha, _) = map(decoded, page.attributes("img"))
    assert (photo, plot, with_alpha) == ("jpeg", "png", "png")
    assert Image.open(io.BytesIO(content)).tobytes() == drawing.tobytes()


def test_thin_coloured_lines_survive_jpeg(write):
    photo = noise(200, 200)
    photo.paste((40, 230, 110), (100, 0, 102, 200))
    _, page = write(Section("Pictures", pictures=[Picture(photo, "", "")]))
    kind, content = decoded(page.attributes("img")[0])
    line = np.asarray(Image.open(io.BytesIO(content)))[:, 100:102].astype(int)
    assert kind == "jpeg"
    assert np.abs(line.mean((0, 1)) - (40, 230, 110)).max() < 12


def test_the_page_makes_no_request(write):
    html, page = write(Section("All", "http://example.com", TABLE, [Picture(noise(), "https://example.com", "")]))
    for tag, attributes in page.elements:
        assert tag not in ("script", "link", "iframe", "a", "object")
        assert attributes.get("src", "data:").startswith("data:")
        assert not {"href", "srcset", "style", "onload", "onerror"} & set(attributes)
    (style,) = page.text("style")
    assert "url(" not in style and "@import" not in style
    policy = next(a["content"] for a in page.attributes("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_a_failed_page_leaves_the_earlier_one(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("earlier")
    for picture, error, message in (
        (b"GIF89a", ValueError, r"picture 'a plot' is neither PNG nor JPEG \(its bytes\)"),
        (Path(__file__), ValueError, r"neither PNG nor JPEG \(.*test_html_report.py\)"),
        (tmp_path / "missing.png", FileNotFoundError, "missing.png"),
    ):
        with pytest.raises(error, match=message):
            write_html(path, "", facts={}, sections=[Section("", pictures=[Picture(picture, "a plot", "")])])

    def refuse(source, target):
        assert Path(source).parent == tmp_path  # a rename across disks would not be atomic
        assert "</html>" in Path(source).read_text()
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="disk full"):
        write_html(path, "", facts={}, sections=[])
    assert path.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [path]


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium, chromium-browser or google-chrome on the PATH")
@pytest.mark.parametrize(("width", "dark"), [(1200, False), (500, True)])
def test_a_browser_shows_the_page(write, tmp_path, width, dark):
    picture = Image.new("RGB", (800, 100), MAGENTA)
    write(
        Section(
            "Precision", table={"a": {f"AP{n}": 50.0 for n in range(30)}, "b": {f"AP{n}": 60.0 for n in range(30)}}
        ),
        Section(
            "Boxes", pictures=[Picture(png(picture), "A plot.", "a plot"), Picture(picture, "Another.", "another")]
        ),
        facts={"command": "python " + "x" * 300},
    )
    screenshot = tmp_path / "page.png"
    subprocess.run(
        [
            CHROMIUM,
            "--headless",
            "--no-sandbox",  # Chromium has no sandbox when run by root, as in a container
            "--disable-gpu",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--hide-scrollbars",
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--blink-settings=preferredColorScheme={0 if dark else 1}",
            f"--window-size={width},1200",
            f"--screenshot={screenshot}",
            (tmp_path / "new folder" / "report.html").as_uri(),
        ],
        check=True,
        capture_output=True,
        timeout=300,
    )
    page = np.asarray(Image.open(screenshot).convert("RGB")).astype(int)
    background = page[2, 2]
    assert (background.max() < 60) if dark else (background.min() > 240)
    ys, xs = (page == MAGENTA).all(2).nonzero()
    shown = xs.max() - xs.min() + 1
    margins = 2 * 14  # about
    assert shown == 800 if width > 800 else width - 2 * margins < shown < width
    # Two pictures in their aspect ratios, with a readable caption between them.
    assert len(ys) == pytest.approx(2 * shown * shown / 8, rel=0.05)
    between = page[ys.min() : ys.max()][~(page == MAGENTA).all(2)[ys.min() : ys.max()].any(1)]
    assert np.abs(between - background).sum(2).max() > 200
    # Wide content scrolls inside the page: the right margin stays empty.
    assert np.abs(page[:, -8:] - background).max() == 0
    reddish, greenish = page[..., 0] - page[..., 1:].max(2), page[..., 1] - page[..., [0, 2]].max(2)
    assert greenish.max() > 30 and reddish.max() < 30  # the green text "+10.0"
