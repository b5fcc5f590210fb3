"""Figure of a cluster of candidates in which greedy NMS and IoU-guided NMS keep different boxes."""

from pathlib import Path

from card_photos import card_with_two_candidates
from figure_style import AFTER, BEFORE, LOOSE, TIGHT, new_figure, outline, photo, save

ROW, CARD = 2, 3  # the photograph and its card


def draw(folder: Path) -> None:
    card = card_with_two_candidates(ROW, CARD)
    figure = new_figure(3.75)
    axes = figure.subplots(1, 3)
    photo(axes[0], card.image, card.truth, margin=0.3)
    for box in card.found.boxes[card.of_card]:
        outline(axes[0], box, "#59b4ff", width=0.6)
    axes[0].set_title(f"{int(card.of_card.sum())} candidates", fontsize=11)
    own = f"{card.found.scores[card.greedy]:.2f}"
    inherited = f"{card.found.scores[card.guided]:.2f} → {card.inherited:.2f}"
    for of, title, kept, score, colour, line in (
        (axes[1], "greedy NMS keeps", card.greedy, own, BEFORE, LOOSE),
        (axes[2], "IoU-guided NMS keeps", card.guided, inherited, AFTER, TIGHT),
    ):
        photo(of, card.image, card.truth, margin=0.3)
        outline(of, card.truth, "white", width=1)
        outline(of, card.found.boxes[kept], line, width=2.2)
        of.set_title(title, fontsize=11)
        below = {"transform": of.transAxes, "ha": "center", "va": "top"}
        of.text(0.5, -0.04, f"class score {score}\npredicted IoU {card.found.ious[kept]:.2f}", fontsize=10, **below)
        true = f"true IoU {card.true_ious[kept]:.2f}"
        of.text(0.5, -0.24, true, fontsize=12, weight="bold", color=colour, **below)
    save(figure, folder / "method_nms.png", photographs=True, exact=("#59b4ff",))
