import json
import time

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from iounet.training.run_folder import RunFolder, environment


def rows(path):
    return [json.loads(line) for line in (path / "metrics.json").read_text().splitlines()]


def logged(path):
    """Tag → [(iteration, value)] of all TensorBoard files."""
    events = EventAccumulator(str(path / "tensorboard"), size_guidance={"images": 0}).Reload()
    tags = events.Tags()
    scalars = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags["scalars"]}
    return scalars, {tag: [event.step for event in events.Images(tag)] for tag in tags["images"]}


def test_a_run_leaves_config_environment_metrics_and_logs(tmp_path):
    path = tmp_path / "deep" / "run"
    folder = RunFolder(path, "SEED: 3\n")
    folder.log(20, {"loss": 1.5, "loss_iou": 0.25})
    folder.log(40, {"loss": 1.25})
    folder.close()
    assert (path / "config.yaml").read_text() == "SEED: 3\n"
    assert json.loads((path / "environment.json").read_text())["torch"] == torch.__version__.split("+")[0]
    assert rows(path) == [{"iteration": 20, "loss": 1.5, "loss_iou": 0.25}, {"iteration": 40, "loss": 1.25}]
    assert logged(path)[0] == {"loss": [(20, 1.5), (40, 1.25)], "loss_iou": [(20, 0.25)]}


def test_rows_can_be_read_while_the_run_goes_on(tmp_path):
    folder = RunFolder(tmp_path, "")
    folder.log(1, {"loss": 1.0})
    assert rows(tmp_path) == [{"iteration": 1, "loss": 1.0}]
    folder.close()


def test_a_resumed_run_keeps_the_rows_up_to_its_checkpoint(tmp_path):
    folder = RunFolder(tmp_path, "")
    for iteration in (20, 40, 60):
        folder.log(iteration, {"loss": float(iteration)})
    folder.close()
    time.sleep(1.1)  # TensorBoard reads its files in the order of their names, which begin with the second
    folder = RunFolder(tmp_path, "", start_iteration=40)
    assert [row["iteration"] for row in rows(tmp_path)] == [20, 40]
    folder.log(60, {"loss": 0.5})
    folder.close()
    assert [row["loss"] for row in rows(tmp_path)] == [20.0, 40.0, 0.5]
    assert logged(tmp_path)[0]["loss"] == [(20, 20.0), (40, 40.0), (60, 0.5)]


def test_a_row_that_a_killed_run_wrote_by_half_does_not_stop_its_resumption(tmp_path):
    folder = RunFolder(tmp_path, "")
    folder.log(20, {"loss": 1.0})
    folder.close()
    with open(tmp_path / "metrics.json", "a") as file:
        file.write('{"iteration": 40, "lo')
    RunFolder(tmp_path, "", start_iteration=20).close()
    assert rows(tmp_path) == [{"iteration": 20, "loss": 1.0}]


def test_a_new_run_starts_anew(tmp_path):
    folder = RunFolder(tmp_path, "")
    folder.log(20, {"loss": 1.0})
    folder.close()
    RunFolder(tmp_path, "").close()
    assert rows(tmp_path) == []


def test_an_evaluation_is_logged_with_its_pictures(tmp_path):
    folder = RunFolder(tmp_path, "")
    for name in ("boxes", "correlation"):
        Image.new("RGBA", (8, 6), "red").save(tmp_path / f"{name}.png")
    summary = {
        "table": {"greedy NMS": {"AP": 30.0}, "soft-NMS": {"AP": 31.0}},
        "correlation": {"score": 0.25, "predicted_iou": 0.5, "num_boxes": 7},
    }
    folder.log_evaluation(100, summary)
    folder.close()
    expected = {
        "greedy NMS/AP": 30.0,
        "soft-NMS/AP": 31.0,
        "correlation/score": 0.25,
        "correlation/predicted_iou": 0.5,
        "correlation/num_boxes": 7,
    }
    assert rows(tmp_path) == [{"iteration": 100} | expected]
    scalars, images = logged(tmp_path)
    assert [value for [(_, value)] in scalars.values()] == pytest.approx(list(expected.values()))
    assert images == {"boxes": [100], "correlation": [100]}


def test_the_environment_can_be_written():
    found = environment()
    assert json.loads(json.dumps(found)) == found
    assert {"python", "platform", "processor", "threads", "cuda", "gpu", "torch", "torchvision", "pycocotools"} <= set(
        found
    )
    assert found["threads"] == torch.get_num_threads()
