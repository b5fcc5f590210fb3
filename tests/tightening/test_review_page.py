"""The review page as a file. test_review_in_browser.py opens it in a browser."""

import base64
import io
import json
import re
from dataclasses import replace

import pytest
from PIL import Image

from iounet.tightening import Proposal
from iounet.tightening.decisions import Decision, labels_fingerprint, proposals_fingerprint
from iounet.tightening.review import write_review

DECISIONS = [Decision(True, "gain of 0.02 or more")] * 3 + [Decision(False, "kept")] * 3
JUDGEMENTS = [
    Proposal((10.0, 9.0, 42.0, 44.0), 0.5, 0.625, 0.1),
    Proposal((30.0, 10.0, 70.0, 48.0), 0.25, 0.875, 0.1),
    Proposal((21.0, 20.0, 60.0, 30.0), 0.5, 0.75, 0.05),
    Proposal((2.0, 3.0, 22.0, 25.0), 0.5, 0.5, 0.0),
    "crowd or difficult",
    "has more than a box",
]


@pytest.fixture
def page(labels, tmp_path):
    """A function that returns the page's text, its number of cards and the content that its script reads."""

    def page(labels=labels, limit=200):
        count = write_review(tmp_path / "review.html", labels, JUDGEMENTS, DECISIONS, limit=limit)
        text = (tmp_path / "review.html").read_text()
        (content,) = re.findall(r'<script type="application/json" id="content">(.*)</script>', text)
        return text, count, json.loads(content)

    return page


def test_cards_are_the_moved_labels_in_descending_order_of_gain(page, labels):
    _, count, content = page()
    assert [card["key"] for card in content["cards"]] == ["second", "third", "first"] and count == 3
    assert [card["gain"] for card in content["cards"]] == [0.625, 0.25, 0.125]
    assert content["labels"] == labels_fingerprint(labels)
    assert content["proposals"] == proposals_fingerprint(labels, JUDGEMENTS)


def test_the_limit_keeps_the_largest_gains(page):
    _, count, content = page(limit=2)
    assert [card["key"] for card in content["cards"]] == ["second", "third"] and count == 2


def test_both_boxes_lie_in_the_crop(page, labels):
    """Label 0 is 32 x 35 pixels, and its proposed box lies 2 pixels to the right. The side of the crop is 1.35 * 35."""
    card = page()[2]["cards"][2]
    scale = 300 / (1.35 * 35)
    left, top = (8 + 42) / 2 - 1.35 * 35 / 2, (9 + 44) / 2 - 1.35 * 35 / 2
    assert card["before"] == pytest.approx([(8 - left) * scale, (9 - top) * scale, 32 * scale, 35 * scale], abs=0.06)
    assert card["after"] == pytest.approx([(10 - left) * scale, (9 - top) * scale, 32 * scale, 35 * scale], abs=0.06)


def test_the_crop_is_where_the_boxes_are(page, labels, tmp_path):
    """The second label spans x = 30 to 75 and the crop 1.35 times that, so the edge at x = 40 lies at pixel 88."""
    photo = Image.new("RGB", (80, 50), "red")
    photo.paste("blue", (0, 0, 40, 50))
    photo.save(tmp_path / "red_and_blue.png")
    images = [*labels.images[:2], replace(labels.images[2], path=tmp_path / "red_and_blue.png")]
    card = page(replace(labels, images=images))[2]["cards"][0]
    with Image.open(io.BytesIO(base64.b64decode(card["jpeg"]))) as crop:
        assert crop.size == (300, 300)
        assert crop.getpixel((88 - 12, 150)) == pytest.approx((0, 0, 255), abs=40)
        assert crop.getpixel((88 + 12, 150)) == pytest.approx((255, 0, 0), abs=40)


def test_the_page_loads_nothing_from_the_network(page):
    text, *_ = page()
    assert "default-src 'none'" in text
    assert not re.search(r"https?://|@import|url\(", text)


def test_names_are_escaped(page, labels):
    hostile = "</script><script>alert(1)</script>"
    named = [replace(label, class_name=hostile) for label in labels.boxes]
    text, _, content = page(replace(labels, boxes=named, source=labels.source / hostile))
    assert hostile not in text and content["cards"][0]["class"] == hostile


def test_a_removed_image_has_no_cards(page, labels, tmp_path):
    images = [replace(labels.images[0], path=tmp_path / "gone.png"), *labels.images[1:]]
    _, count, content = page(replace(labels, images=images))
    assert [card["key"] for card in content["cards"]] == ["second"] and count == 1
