"""Colours of the lines in pictures, and functions that find them."""

import numpy as np
import torch
from PIL import Image

WHITE, ORANGE, GREEN, CYAN = (255, 255, 255), (255, 150, 20), (40, 230, 110), (80, 205, 255)
GREY = torch.full((3, 160, 160), 90, dtype=torch.uint8)  # drawn 4 times as large


def boxes(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float32)


def is_colour(picture: Image.Image, colour: tuple[int, int, int]) -> np.ndarray:
    return (np.asarray(picture) == colour).all(axis=2)


def is_like(picture: Image.Image, colour: tuple[int, int, int]) -> np.ndarray:
    """Match colours approximately, for slanted lines, whose pixels blend with their surroundings."""
    return (np.abs(np.asarray(picture).astype(int) - colour) < 70).all(axis=2)
