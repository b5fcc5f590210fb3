"""Four boxes with class names for the tests of the adapters; the refiner does not know the class "zebra".

Greedy NMS suppresses the first of the two stars, which has the lower score; the zebra is excluded from NMS.
``AFTER_NMS`` contains the rows of the kept boxes, by descending score.
"""

import torch

BOXES = torch.tensor([[8.0, 9.0, 40.0, 44.0], [30.0, 10.0, 75.0, 48.0], [2.0, 3.0, 12.0, 15.0], [9.0, 9.0, 41.0, 45.0]])
SCORES = torch.tensor([0.25, 0.875, 0.5, 0.75])
NAMES = ["star", "cross", "zebra", "Star"]
AFTER_NMS = [1, 3, 2]

KNOWN = [0, 1, 3]
LABELS_OF_KNOWN = torch.tensor([2, 1, 2])

# A detector's class names, and the class numbers of the four boxes.
CLASS_NAMES = ["cross", "zebra", "star"]
CLASSES = torch.tensor([2, 0, 1, 2])
