"""Figures without a window system."""

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def new_figure(size: tuple[float, float]) -> tuple[Figure, FigureCanvasAgg]:
    """Return an empty figure of the given size in inches, at 150 dots per inch, and the canvas that prints it."""
    # pyplot would select a window system and keep every figure until it is closed.
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    return figure, FigureCanvasAgg(figure)
