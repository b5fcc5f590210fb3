import json

import numpy as np
import pytest
import torch
from PIL import Image

from iounet.data import CocoDataset, DataError, build_transforms, eval_loader, train_loader

NUM_IMAGES = 7


@pytest.fixture
def dataset(tmp_path):
    """Seven images with one box each; image i has id i and a bright left edge, so that flips can be detected."""
    pixels = np.zeros((8, 8, 3), dtype=np.uint8)
    pixels[:, 0] = 255
    images, annotations = [], []
    for i in range(NUM_IMAGES):
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "width": 8, "height": 8})
        annotations.append({"id": i, "image_id": i, "category_id": 1, "bbox": [0, 0, 1 + i, 4]})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    (tmp_path / "set.json").write_text(json.dumps(content))
    return CocoDataset(tmp_path / "set.json", tmp_path, transforms=build_transforms(True))


def batches_of(loader):
    """Return [[(image id, flipped), ...], ...]."""
    return [
        [(target["image_id"], bool(image[0, 0, -1] == 1)) for image, target in zip(images, targets, strict=True)]
        for images, targets in loader
    ]


def train_batches(dataset, **changes):
    arguments = {"batch_size": 2, "num_workers": 0, "seed": 0, "num_iterations": 21} | changes
    return batches_of(train_loader(dataset, **arguments))


def test_a_batch_is_two_lists(dataset):
    images, targets = next(iter(train_loader(dataset, batch_size=3, num_workers=0, seed=0, num_iterations=1)))
    assert isinstance(images, list) and isinstance(targets, list)
    assert [tuple(image.shape) for image in images] == [(3, 8, 8)] * 3
    assert all(set(target) == {"boxes", "labels", "image_id"} for target in targets)


def test_each_epoch_covers_every_image_once_in_another_order(dataset):
    ids = [id_ for batch in train_batches(dataset) for id_, _ in batch]  # 42 positions: 6 epochs
    epochs = [ids[i : i + NUM_IMAGES] for i in range(0, len(ids), NUM_IMAGES)]
    assert all(sorted(epoch) == list(range(NUM_IMAGES)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_the_seed_determines_the_batches(dataset):
    assert train_batches(dataset) == train_batches(dataset)
    assert train_batches(dataset) != train_batches(dataset, seed=1)


@pytest.mark.parametrize("start", [1, 10, 20, 21])
def test_a_resumed_run_gets_the_batches_of_the_whole_run(dataset, start):
    torch.manual_seed(start)
    assert train_batches(dataset, start_iteration=start) == train_batches(dataset)[start:]


def test_workers_do_not_change_the_batches(dataset):
    assert train_batches(dataset, num_workers=2) == train_batches(dataset)


def test_augmentation_differs_between_epochs(dataset):
    flips = {flipped for batch in train_batches(dataset) for id_, flipped in batch if id_ == 0}
    assert flips == {False, True}


def test_loading_leaves_the_random_state_of_training_alone(dataset):
    before = torch.random.get_rng_state()
    train_batches(dataset)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_ranks_share_one_order_without_overlap(dataset):
    whole = train_batches(dataset, num_iterations=21)
    ranks = [train_batches(dataset, num_iterations=7, rank=rank, world_size=3) for rank in range(3)]
    assert [batch for iteration in zip(*ranks, strict=True) for batch in iteration] == whole


def test_length_is_what_remains(dataset):
    assert len(train_loader(dataset, batch_size=2, num_workers=0, seed=0, start_iteration=5, num_iterations=21)) == 16


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_sees_every_image_once_over_the_ranks(dataset, world_size):
    ranks = [
        [id_ for batch in batches_of(loader) for id_, _ in batch]
        for loader in (
            eval_loader(dataset, batch_size=2, num_workers=0, rank=rank, world_size=world_size)
            for rank in range(world_size)
        )
    ]
    assert sorted(sum(ranks, [])) == list(range(NUM_IMAGES))
    assert all(ids == sorted(ids) for ids in ranks)


def test_evaluation_can_run_again_on_the_same_workers(dataset):
    loader = eval_loader(dataset, batch_size=4, num_workers=1)
    ids = [[id_ for batch in batches_of(loader) for id_, _ in batch] for _ in range(2)]
    assert ids == [list(range(NUM_IMAGES))] * 2


def test_an_error_in_a_worker_keeps_its_message(dataset):
    (dataset.image_folder / "3.png").unlink()
    with pytest.raises(DataError) as caught:
        batches_of(eval_loader(dataset, batch_size=1, num_workers=1))
    path = dataset.image_folder / "3.png"
    assert str(caught.value) == f"{path}: no such image; restore it, or remove it from the list of images"
