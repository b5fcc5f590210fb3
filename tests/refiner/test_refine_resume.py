"""A stopped run can be resumed with the same result, and memory does not grow with the number of images."""

import errno
import json
import shutil

import pytest
from alive import alive
from coco_results import entry, some_entries

from iounet import IoURefiner


def test_a_stopped_run_resumes(refine, write, dataset, tmp_path, monkeypatch):
    path = write(some_entries())
    whole = refine(path)
    shutil.rmtree(tmp_path / "out")
    shutil.copytree(dataset / "val", tmp_path / "images")
    damaged = tmp_path / "images" / "000004.png"
    content = damaged.read_bytes()
    damaged.write_bytes(content[:300])
    assert "000004.png: cannot be read" in refine(path, images=tmp_path / "images")
    progress = tmp_path / "out" / "progress.jsonl"
    done = [json.loads(line).get("image_id") for line in progress.read_text().splitlines()]
    assert 0 < len(done) - 1 < 5 and 4 not in done
    with open(progress, "a") as file:
        file.write('{"image_id": 5, "aft')  # an incomplete line, as after a kill

    damaged.write_bytes(content)
    message = refine(path, images=tmp_path / "images")
    assert "progress.jsonl belongs to a run that was stopped; pass --resume" in message
    message = refine(write(some_entries()[1:], "other.json"), "--resume", images=tmp_path / "images")
    assert "a run with a different detections file" in message
    message = refine(path, "--resume", images=dataset / "val")
    assert "progress.jsonl belongs to a run with other images" in message
    message = refine(path, "--resume", "--class-agnostic", "--exif", images=tmp_path / "images")
    assert "a run with a different --class-agnostic and --exif" in message

    seen = []
    refine_batch = IoURefiner.refine_batch
    monkeypatch.setattr(IoURefiner, "refine_batch", lambda *given: seen.append(len(given[1])) or refine_batch(*given))
    assert refine(path, "--resume", images=tmp_path / "images") == whole
    assert sum(seen) == 5 - (len(done) - 1)
    assert not progress.exists()


def test_ctrl_c_and_resume(refine, write, tmp_path, monkeypatch, capsys):
    path = write(some_entries())
    assert isinstance(refine(path, output=tmp_path / "whole"), list)
    refine_batch, calls = IoURefiner.refine_batch, []

    def interrupted(*given):
        calls.append(given)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return refine_batch(*given)

    with monkeypatch.context() as patch:
        patch.setattr(IoURefiner, "refine_batch", interrupted)
        assert refine(path) == 130
    assert "interrupted; add --resume to continue" in capsys.readouterr().err
    assert isinstance(refine(path, "--resume"), list)
    whole, resumed = (tmp_path / name / "detections.json" for name in ("whole", "out"))
    assert resumed.read_bytes() == whole.read_bytes()


def test_a_stopped_run_with_own_detections_resumes(detect, dataset, tmp_path, monkeypatch):
    detect(dataset / "val", output=tmp_path / "whole")
    detect_batch, calls = IoURefiner.detect_batch, []

    def full(*given):
        calls.append(given)
        if len(calls) == 4:
            raise OSError(errno.ENOSPC, "no space left on device")
        return detect_batch(*given)

    with monkeypatch.context() as patch:
        patch.setattr(IoURefiner, "detect_batch", full)
        message = detect(dataset / "val")
    assert message.startswith("[Errno 28] no space left on device: free disk space for ")
    assert not (tmp_path / "out" / "detections.json").exists()
    detect(dataset / "val", more=["--resume"])
    for name in ("detections.json", "images.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_the_list_of_images_may_change(detect, dataset, tmp_path, monkeypatch):
    """Finished image 1 is removed, 3 is damaged and 0 is new, so that the ids of the others change."""
    images = tmp_path / "images"
    shutil.copytree(dataset / "val", images)
    (images / "000003.png").write_bytes((images / "000003.png").read_bytes()[:300])
    assert "remove it from the list of images" in detect(images)
    (images / "000001.png").unlink()
    (images / "000003.png").unlink()
    shutil.copy(dataset / "val" / "000003.png", images / "000000.png")

    with monkeypatch.context() as patch:
        detect_batch, seen = IoURefiner.detect_batch, []
        patch.setattr(IoURefiner, "detect_batch", lambda *given: seen.append(len(given[1])) or detect_batch(*given))
        resumed = detect(images, more=["--resume"])
    assert sum(seen) == 3  # 0, 4 and 5; 2 is finished
    whole = detect(images, output=tmp_path / "whole")

    def names_of(folder):
        listed = json.loads((tmp_path / folder / "images.json").read_text())["images"]
        return {image["id"]: image["file_name"] for image in listed}

    numbers = {1: "000000.png", 2: "000002.png", 3: "000004.png", 4: "000005.png"}
    assert names_of("out") == names_of("whole") == numbers
    assert sorted(map(json.dumps, resumed)) == sorted(map(json.dumps, whole))


@pytest.mark.slow
def test_memory_does_not_grow_with_images(refine, dataset, write, tmp_path, monkeypatch):
    """docs/benchmarks.md shows constant resident memory over 10,000 images."""
    images = tmp_path / "images"
    images.mkdir()
    for number in range(160):
        (images / f"{number:06d}.png").symlink_to(dataset / "val" / f"{number % 5 + 1:06d}.png")
    refine_batch, held = IoURefiner.refine_batch, []

    def watched(*given):
        held.append(alive() if len(held) in (20, 90, 150) else None)
        return refine_batch(*given)

    monkeypatch.setattr(IoURefiner, "refine_batch", watched)
    detections = write([entry(number, [5, 6, 30, 40]) for number in range(160)])
    assert isinstance(refine(detections, "--pictures", 0, images=images), list)
    (tensors, _), *later = filter(None, held)
    assert len(held) == 160 and len(later) == 2
    assert all(tensors_then < tensors + 10 for tensors_then, _ in later)  # the number of images read ahead varies
    assert len({files for _, files in filter(None, held)}) == 1
