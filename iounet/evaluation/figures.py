"""What the figures of an evaluation have in common."""

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def new_figure(size: tuple[float, float]) -> tuple[Figure, FigureCanvasAgg]:
    """An empty figure of so many inches at 150 dots an inch, and what prints it."""
    # Not pyplot: it would choose a window system, and keep each figure until told to close it.
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    return figure, FigureCanvasAgg(figure)
