"""What the tests of the adapters refine: four boxes with names of classes, of which the refiner does not know "zebra".

Of the two stars, greedy NMS suppresses the first, whose score is lower; the zebra takes no part. ``AFTER_NMS`` holds
the rows that are left, by falling score.
"""

import torch

BOXES = torch.tensor([[8.0, 9.0, 40.0, 44.0], [30.0, 10.0, 75.0, 48.0], [2.0, 3.0, 12.0, 15.0], [9.0, 9.0, 41.0, 45.0]])
SCORES = torch.tensor([0.25, 0.875, 0.5, 0.75])
NAMES = ["star", "cross", "zebra", "Star"]
AFTER_NMS = [1, 3, 2]

KNOWN = [0, 1, 3]
LABELS_OF_KNOWN = torch.tensor([2, 1, 2])

# As a detector numbers these classes.
CLASS_NAMES = ["cross", "zebra", "star"]
CLASSES = torch.tensor([2, 0, 1, 2])
