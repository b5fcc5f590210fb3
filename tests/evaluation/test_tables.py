"""Markdown tables of one run and of several seeds."""

import math

import pytest

from iounet.evaluation.tables import gain_in_words, markdown, seeds_table


def test_a_table():
    assert markdown(["what", "of", "ms"], [["a", "b", "1.0"], ["c", "", "2.0"]], text_columns=2) == (
        "| what | of | ms |\n| --- | --- | ---: |\n| a | b | 1.0 |\n| c |  | 2.0 |"
    )
    assert markdown(["", "ms", "MiB"], [], text_columns=1) == "| | ms | MiB |\n| --- | ---: | ---: |"


def test_means_of_seeds_with_gains_over_the_first_row_of_each_seed():
    seeds = [
        {"plain": {"AP": 50.0, "Loc50": None}, "ours": {"AP": 60.0, "Loc50": 1.0}},
        {"plain": {"AP": 54.0, "Loc50": None}, "ours": {"AP": 60.0, "Loc50": 2.0}},
    ]
    assert seeds_table(seeds, ["AP", "Loc50"]).splitlines() == [
        "| | AP | Loc50 | ΔAP |",
        "| --- | ---: | ---: | ---: |",
        "| plain | 52.0 ± 2.8 | – |  |",
        "| ours | 60.0 ± 0.0 | 1.5 ± 0.7 | +8.0 ± 2.8 |",
    ]


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (34.4, 38.4, "refined: 38.4 AP, 4.0 more than greedy NMS (34.4)"),
        (34.44, 38.36, "refined: 38.4 AP, 4.0 more than greedy NMS (34.4)"),  # the printed numbers add up
        (60, 58.5, "refined: 58.5 AP, 1.5 less than greedy NMS (60.0)"),
        (60, 60.01, "refined: 60.0 AP, the same as greedy NMS (60.0)"),
        (math.nan, math.nan, "AP is undefined: the ground truth has no objects"),
    ],
)
def test_the_gain_in_words(before, after, expected):
    assert gain_in_words({"greedy NMS": {"AP": before}, "soft-NMS": {"AP": 1.0}, "refined": {"AP": after}}) == expected
