"""Draw the figures of the method pages into docs/pictures.

    python docs/figures

The figures show what the project's own functions compute, with the model in weights/ and the photographs in examples/.
Drawing takes about half a minute on a CPU.
"""

import argparse
from pathlib import Path

import energy_figures
import jitter_figures
import nms_figures
import pipeline_figures
import pooling_figures
import refinement_figures

PICTURES = Path(__file__).resolve().parents[1] / "pictures"
DRAWERS = (pipeline_figures, pooling_figures, jitter_figures, nms_figures, refinement_figures, energy_figures)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=PICTURES, metavar="DIR", help="default: docs/pictures")
    folder = parser.parse_args().output
    folder.mkdir(parents=True, exist_ok=True)
    for drawer in DRAWERS:
        drawer.draw(folder)


if __name__ == "__main__":
    main()
