"""Images are read in order, ahead of their use."""

import threading
from concurrent.futures import Future

import pytest
import torch
from PIL import ExifTags, Image

from iounet.data import read_image
from iounet.errors import DataError
from iounet.refiner import read_ahead as module
from iounet.refiner.read_ahead import read_ahead


@pytest.fixture
def paths(tmp_path):
    """Seven images by number, all of different colours and sizes."""
    paths = {number: tmp_path / f"{number}.png" for number in range(7)}
    for number, path in paths.items():
        Image.new("RGB", (8 + number, 8), (number, 2 * number, 0)).save(path)
    return paths


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 10])
def test_all_images_in_order(paths, batch_size):
    batches = list(read_ahead(paths, batch_size))
    sizes = [batch_size] * (7 // batch_size) + [7 % batch_size] * (7 % batch_size > 0)
    assert [len(ids) for ids, _ in batches] == [len(images) for _, images in batches] == sizes
    assert [id_ for ids, _ in batches for id_ in ids] == list(paths)
    for image, path in zip([image for _, images in batches for image in images], paths.values(), strict=True):
        assert torch.equal(image, read_image(path)) and image.dtype == torch.uint8


def test_no_images():
    assert list(read_ahead({}, 2)) == []


class AtOnce:
    """A stand-in for a thread pool that runs each task immediately."""

    def __init__(self):
        self.asked = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def submit(self, work, path):
        self.asked.append(path)
        future = Future()
        future.set_result(work(path))
        return future


def test_two_batches_ahead_and_no_more(paths, monkeypatch):
    """Memory does not depend on the length of the list or on the speed of the consumer."""
    pool = AtOnce()
    monkeypatch.setattr(module, "ThreadPoolExecutor", lambda max_workers: pool)
    asked = [len(pool.asked) for _ in read_ahead(paths, 2)]
    assert asked == [6, 7, 7, 7] and pool.asked == list(paths.values())


def test_a_damaged_image_raises_when_its_batch_is_requested(paths):
    paths[3].write_bytes(paths[3].read_bytes()[:40])
    batches = read_ahead(paths, 1)
    for _ in range(3):
        next(batches)
    with pytest.raises(DataError, match=r"3\.png: cannot be read as an image"):
        next(batches)


@pytest.mark.parametrize(("batch_size", "sizes"), [(1, [1] * 5), (2, [2, 1, 1, 1]), (7, [5])])
def test_on_fault_drops_the_image_from_its_batch(paths, batch_size, sizes):
    for number in (3, 4):
        paths[number].write_bytes(paths[number].read_bytes()[:40])
    faults = {}
    batches = list(read_ahead(paths, batch_size, on_fault=faults.__setitem__))
    assert [id_ for ids, _ in batches for id_ in ids] == [0, 1, 2, 5, 6]
    assert all(
        torch.equal(image, read_image(paths[id_])) for batch in batches for id_, image in zip(*batch, strict=True)
    )
    assert list(faults) == [3, 4] and "4.png: cannot be read as an image" in str(faults[4])
    assert sorted(len(ids) for ids, _ in batches) == sorted(sizes)


def test_exif_orientation(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (3, 1)).save(tmp_path / "a.png", exif=exif)
    for upright, shape in ((False, (3, 1, 3)), (True, (3, 3, 1))):
        ((_, (image,)),) = read_ahead({0: tmp_path / "a.png"}, 1, exif=upright)
        assert image.shape == shape


def test_no_thread_is_left_running(paths):
    before = set(threading.enumerate())
    batches = read_ahead(paths, 2)
    next(batches)
    assert set(threading.enumerate()) > before
    batches.close()
    assert set(threading.enumerate()) <= before
