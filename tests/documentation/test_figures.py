"""Every measured number in the prose of README.md and docs/ equals the number in its file."""

from pathlib import Path

import figures_of_benchmarks
import figures_of_guides
import figures_of_method
import figures_of_results
import pytest
from prose_figures import covered_by, occurrences, prose, unexplained

ROOT = Path(__file__).parents[2]
OF_PAGES = (figures_of_results, figures_of_benchmarks, figures_of_guides, figures_of_method)
FIGURES = {page: entries for module in OF_PAGES for page, entries in module.FIGURES.items()}
ALLOWED = {page: entries for module in OF_PAGES for page, entries in module.ALLOWED.items()}

# Pages to search. Most numbers in docs/method/ belong to formulas, and docs/results/ holds files written by commands.
PAGES = {str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md")}
PAGES = {page for page in PAGES if not page.startswith(("docs/method/", "docs/results/"))} | set(FIGURES)


def read(page):
    return prose((ROOT / page).read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("page", "template", "values"),
    [(page, template, values) for page, entries in FIGURES.items() for template, *values in entries],
)
def test_a_figure_equals_its_file(page, template, values):
    filled, _ = covered_by(template, values)
    assert any(occurrences(read(page), filled)), f"{page} should contain: {filled}"


@pytest.mark.parametrize(
    ("page", "text", "reason"),
    [(page, *entry) for page, entries in ALLOWED.items() for entry in entries],
)
def test_an_exception_is_still_needed(page, text, reason):
    assert reason and any(occurrences(read(page), text)), f"{page} does not contain: {text}"


@pytest.mark.parametrize("page", sorted(PAGES - set(figures_of_guides.NOT_SEARCHED)))
def test_no_number_stands_without_a_file(page):
    """To fix: add the number to FIGURES or ALLOWED, or write "by hand" in its sentence."""
    text, covered = read(page), []
    for template, *values in FIGURES.get(page, ()):
        filled, spans = covered_by(template, values)
        covered += [(start + a, start + b) for start in occurrences(text, filled) for a, b in spans]
    for allowed, _ in ALLOWED.get(page, ()):
        covered += [(start, start + len(allowed)) for start in occurrences(text, allowed)]
    assert unexplained(text, covered) == []


def test_what_looks_measured():
    page = prose(
        "# 1.5\n\nWith **2.5** AP, 12 ± 4 AP and 2 to 7 times, over 3 pictures (figure 3).\nPyTorch 2.4, `x 0.5`, "
        "[file](a-1.2.md), a score above 0.5.\n\n"
        "```\n9.9\n```\n\n<!-- t -->\n8.8\n<!-- t -->\n\nBy 7.7 (by hand). By 6.6.\n"
    )
    assert [entry.split(" in ")[0] for entry in unexplained(page, [])] == "1.5 2.5 12 4 2 7 6.6".split()


def test_a_template_is_found_across_lines_and_not_within_a_longer_number():
    filled, spans = covered_by("by {:.1f} to {}", [1.26, "2 ± 1"])
    assert filled == "by 1.3 to 2 ± 1" and [filled[a:b] for a, b in spans] == ["1.3", "2 ± 1"]
    text = prose("rises\nby 1.3\nto 2 ± 1, by 1.3 to 2 ± 15, by 1.3 to 2 ± 1.5")
    assert list(occurrences(text, filled)) == [6]
    with pytest.raises(AssertionError, match="fewer places than values"):
        covered_by("{}", [1, 2])
