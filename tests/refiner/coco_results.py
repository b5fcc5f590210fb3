"""Entries of a COCO results file, for the five validation images of the fixture ``dataset``."""

import random


def entry(image_id, bbox, *, category_id=1, score=0.75, **more):
    return {"image_id": image_id, "category_id": category_id, "bbox": bbox, "score": score, **more}


def some_entries():
    """Detections in all five images, in mixed order, with additional keys."""
    chance = random.Random(0)
    entries = [
        entry(
            image_id,
            [chance.uniform(0, 30), chance.uniform(0, 30), chance.uniform(8, 34), chance.uniform(8, 34)],
            category_id=chance.randint(1, 5),
            score=chance.random(),
            id=number,
            track=f"track {number}",
        )
        for number, image_id in enumerate([1, 2, 3, 4, 5] * 4, start=100)
    ]
    chance.shuffle(entries)
    return entries


def perfect_entries(annotations):
    """Return the objects of an annotation file as detections."""
    return [
        entry(object_["image_id"], object_["bbox"], category_id=object_["category_id"])
        for object_ in annotations["annotations"]
    ]
