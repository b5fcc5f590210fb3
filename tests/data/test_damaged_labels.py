"""Label files with random damage: each is read or refused with a message, and copies keep every byte."""

import random
import shutil

import pytest

from iounet.data.label_files import read_labels
from iounet.errors import DataError

# Text that breaks readers: other encodings, odd numbers and lengths, unclosed and repeated text.
PIECES = [
    *(b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\r", b"\n", b"\xe2\x80\xa8", b"NaN", b"1e999", b"-", b"9" * 400),
    *(
        b"<",
        b">",
        b"&",
        b"&lol;",
        b"<!--",
        b"]]>",
        b"<object>",
        b"</annotation>",
        b"<!DOCTYPE a SYSTEM 'file:///etc/x'>",
    ),
    *(b"[", b"{", b'"', b"null", b"true", b"1_0", b"infinity", b"*a", b"!!python/name:os.system", b"\t"),
]


def damage(data, draw):
    for _ in range(draw.randint(1, 3)):
        at, kind = draw.randrange(len(data) + 1), draw.randrange(4)
        if kind == 0:
            data = data[:at] + draw.choice(PIECES) + data[at:]
        elif kind == 1:
            data = data[:at] + data[at + draw.randint(1, 20) :]
        elif kind == 2:
            data = data[:at] + data[at : at + 30] * 2 + data[at + 30 :]
        else:
            data = data[:at] + bytes([draw.randrange(256)]) + data[at + 1 :]
    return data


@pytest.mark.parametrize(
    ("form", "name"),
    [("coco", "pets.json"), ("voc", "a.xml"), ("yolo", "labels/a.txt"), ("yolo", "classes.txt"), ("yolo", "data.yaml")],
)
def test_damaged_files(pets, tmp_path, form, name):
    source = pets(form)
    root = source.parent if form == "coco" else source
    if name == "data.yaml":
        (root / name).write_text("path: .\ntrain: images\nnames:\n  0: dog\n  1: cat\n")
    whole = (root / name).read_bytes()
    outcomes = set()
    for seed in range(60):
        draw = random.Random(f"{name} {seed}")
        (root / name).write_bytes(damaged := damage(whole, draw))
        try:
            labels = read_labels(source)
        except DataError as error:
            assert str(root) in str(error)
            outcomes.add("refused")
            continue
        outcomes.add("faults" if labels.faults else "read")
        keys = [label.key for label in labels.boxes]
        assert len(keys) == len(set(keys))
        for label in labels.boxes:
            image = labels.images[label.image]
            x0, y0, x1, y1 = label.box
            assert 0 <= x0 < x1 <= image.width and 0 <= y0 < y1 <= image.height
            assert label.class_name in labels.class_names
        copy = tmp_path / "copy"
        labels.write_copy(copy, {})
        if name != "data.yaml":
            assert (copy if form == "coco" else copy / name).read_bytes() == damaged
        moved = {label.key: label.box for label in labels.boxes if label.movable}
        labels.write_copy(copy, moved)
        if form == "coco":
            copy.unlink()
        else:
            again = read_labels(copy, images=root)
            assert [label.key for label in again.boxes] == keys
            shutil.rmtree(copy)
    assert len(outcomes) > 1, outcomes
