"""The review page in a browser, opened from a file: deciding by clicks and keys, saving and reloading."""

import json
from dataclasses import replace

import pytest
from browser import CHROMIUM, browser, wait_for

from iounet.tightening import Proposal
from iounet.tightening.decisions import Decision, ReviewedLabels, proposals_fingerprint
from iounet.tightening.review import write_review

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium or Chrome"),
]

ACCEPT, KEEP = Decision(True, "gain of 0.02 or more"), Decision(False, "gain below 0.02")
JUDGEMENTS = [
    Proposal((10.0, 9.0, 42.0, 44.0), 0.5, 0.51, 0.1),
    Proposal((30.0, 10.0, 70.0, 48.0), 0.5, 0.8, 0.1),
    Proposal((21.0, 20.0, 60.0, 30.0), 0.5, 0.7, 0.05),
    Proposal((2.0, 3.0, 24.0, 25.0), 0.5, 0.6, 0.1),
    "crowd or difficult",
    "has more than a box",
]
DECISIONS = [KEEP, ACCEPT, ACCEPT, ACCEPT, KEEP, KEEP]
# In descending order of gain.
AT_FIRST = {"second": "accept", "third": "accept", "stranger": "accept", "first": "keep"}


def on_button(key, decision):
    return f"""document.querySelector('[data-key="{key}"] [data-decision="{decision}"]').click()"""


@pytest.fixture
def page(labels, tmp_path):
    path = tmp_path / "review.html"
    write_review(path, labels, JUDGEMENTS, DECISIONS, limit=200)
    with browser(tmp_path / "profile") as page:
        page.open(path)
        yield page
        asked = [event["params"]["request"]["url"] for event in page.events if "request" in event.get("params", {})]
        assert {url.partition(":")[0] for url in asked} <= {"file", "data", "blob"} and len(asked) > 4
        errors = [event for event in page.events if event["method"] == "Log.entryAdded"]
        assert errors == []


@pytest.fixture
def save(page, tmp_path):
    """A function that presses "Save decisions" and returns the path of the downloaded file."""
    count = 0

    def save():
        nonlocal count
        count += 1
        folder = tmp_path / f"download {count}"
        page.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
        page.evaluate("document.getElementById('save').click()")
        return wait_for(folder / "decisions.json")

    return save


def decided(path):
    return json.loads(path.read_text())["decisions"]


def test_saved_decisions_belong_to_these_proposals(save, labels):
    path = save()
    reviewed = ReviewedLabels.read(path, labels)
    reviewed.check_proposals(proposals_fingerprint(labels, JUDGEMENTS))
    assert decided(path) == AT_FIRST and list(decided(path)) == list(AT_FIRST)
    assert reviewed.accepted["second"] and not reviewed.accepted["first"]


def test_clicks_change_the_saved_decisions(page, save):
    page.evaluate(on_button("second", "keep"))
    page.evaluate(on_button("first", "accept"))
    assert decided(save()) == AT_FIRST | {"second": "keep", "first": "accept"}
    page.evaluate(on_button("second", "accept"))
    assert decided(save()) == AT_FIRST | {"first": "accept"}


def test_keys_change_the_saved_decisions(page, save):
    page.key("j")  # move to the first card, "second"
    page.key("x")  # keep "second" and move to "third"
    page.key("ArrowRight")  # move to "stranger"
    page.key("x")  # keep "stranger" and move to "first"
    page.key("a")  # accept "first", which is the last card and keeps the focus
    page.key("k")  # move to "stranger"
    page.key("ArrowLeft")  # move to "third"
    page.key("a")
    expected = {"second": "keep", "third": "accept", "stranger": "keep", "first": "accept"}
    assert decided(save()) == expected
    assert page.evaluate("document.activeElement.dataset.key") == "stranger"  # the card after "third"
    assert page.evaluate("document.getElementById('num-accepted').textContent") == "2"
    assert page.evaluate("document.getElementById('num-kept').textContent") == "2"


def test_the_class_filter_hides_cards_and_limits_accepting(page, save):
    page.evaluate(on_button("third", "keep"))
    page.evaluate(on_button("second", "keep"))
    page.evaluate(
        "{ const select = document.getElementById('class'); select.value = 'star';"
        " select.dispatchEvent(new Event('change')) }"
    )
    shown = (
        "[...document.querySelectorAll('article')].filter((card) => card.offsetParent).map((card) => card.dataset.key)"
    )
    assert page.evaluate(shown) == ["third"]
    page.evaluate(
        "document.getElementById('min-gain').value = '0';document.querySelector('#accept-above button').click()"
    )
    assert decided(save()) == AT_FIRST | {"second": "keep", "third": "accept"}


def test_accepting_above_a_gain(page, save):
    for key in AT_FIRST:
        page.evaluate(on_button(key, "keep"))
    page.evaluate(
        "document.getElementById('min-gain').value = '0.15';document.querySelector('#accept-above button').click()"
    )
    assert decided(save()) == {"second": "accept", "third": "accept", "stranger": "keep", "first": "keep"}


def test_decisions_survive_a_reload(page, save):
    page.evaluate(on_button("second", "keep"))
    page.reload()
    assert decided(save()) == AT_FIRST | {"second": "keep"}


def test_decisions_on_other_proposals_are_forgotten(page, save, labels, tmp_path):
    page.evaluate(on_button("second", "keep"))
    others = [replace(JUDGEMENTS[0], box=(10.0, 9.0, 43.0, 44.0)), *JUDGEMENTS[1:]]
    write_review(tmp_path / "review.html", labels, others, DECISIONS, limit=200)
    page.reload()
    assert decided(save()) == AT_FIRST


def test_new_thresholds_apply_to_cards_not_decided_by_hand(page, save, labels, tmp_path):
    page.evaluate(on_button("second", "keep"))
    write_review(tmp_path / "review.html", labels, JUDGEMENTS, [ACCEPT, ACCEPT, KEEP, ACCEPT, KEEP, KEEP], limit=200)
    page.reload()
    assert decided(save()) == {"second": "keep", "third": "keep", "stranger": "accept", "first": "accept"}
