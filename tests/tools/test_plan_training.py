"""tools/plan_training.py against sums done by hand."""

import json

import pytest


@pytest.fixture(scope="module")
def tool(load_tool):
    return load_tool("plan_training.py")


@pytest.fixture(scope="module")
def costs(tool):
    return tool.Costs(
        step_seconds=0.3,
        image_seconds=0.09,
        gradient_bytes=200e6,
        load_seconds=0.01,
        file_bytes=150e3,
        score_seconds=90.0,
    )


def test_one_gpu(tool, costs):
    one = tool.plan(costs, 1, within_node=1.0, between_nodes=1.0)  # with nobody to send to
    assert one.limits == "computing" and one.bytes_sent == one.enough == 0
    assert one.training_hours == pytest.approx(2_560_000 / 2 * 0.3 / 3600)
    assert one.detecting_hours == pytest.approx(8 * 5000 * 0.09 / 3600)  # one hour
    assert one.scoring_hours == pytest.approx(8 * 4 * 90 / 3600)
    assert one.images == pytest.approx(2 / 0.3)
    assert one.bytes_read == pytest.approx(1e6) and one.loaders == pytest.approx(0.2 / 3)


def test_eight_gpus_share_all(tool, costs):
    one, eight = (tool.plan(costs, gpus, 10e9, 10e9) for gpus in (1, 8))
    assert eight.limits == "computing" and eight.step_seconds == one.step_seconds
    assert eight.training_hours == pytest.approx(one.training_hours / 8)
    assert eight.detecting_hours == pytest.approx(one.detecting_hours / 8)
    assert eight.scoring_hours == pytest.approx(one.scoring_hours / 8)
    assert eight.bytes_sent == pytest.approx(2 * 7 / 8 * 200e6 / 0.3)
    assert eight.enough == pytest.approx(2 * 7 / 8 * 200e6 / 0.2)  # while the backward pass runs


def test_a_class_is_scored_by_one_process(tool, costs):
    hours = {gpus: tool.plan(costs, gpus, 10e9, 10e9).scoring_hours for gpus in (1, 64, 80, 512)}
    assert hours[64] == pytest.approx(hours[1] * 2 / 80)  # some of 64 processes have two of 80 classes
    assert hours[80] == hours[512] == pytest.approx(hours[1] / 80)


@pytest.mark.parametrize(("within", "between"), [(10e9, 0.7875e9), (0.7875e9, 10e9)])
def test_the_slowest_link_limits_eight_nodes(tool, costs, within, between):
    # Each GPU sends 393.75 MB, for which 0.2 s are free: 1.97 GB/s would do.
    fast, slow = tool.plan(costs, 64, 2e9, 2e9), tool.plan(costs, 64, within, between)
    assert (fast.limits, slow.limits) == ("computing", "exchanging gradients")
    assert fast.enough == slow.enough == pytest.approx(1.96875e9)
    assert fast.step_seconds == pytest.approx(0.3)
    assert slow.step_seconds == pytest.approx(0.1 + 0.5)
    assert slow.training_hours == pytest.approx(2 * fast.training_hours)


@pytest.mark.parametrize("step_seconds", [0.01, 0.05, 0.3])
def test_a_step_of_more_gpus_is_never_faster(tool, costs, step_seconds):
    costs = tool.Costs(**{**vars(costs), "step_seconds": step_seconds})
    seconds = [tool.plan(costs, gpus, 10e9, 12.5e9).step_seconds for gpus in (1, 2, 8, 16, 64, 512)]
    assert seconds == sorted(seconds) and seconds[0] == pytest.approx(step_seconds)


def test_takes_the_seconds_of_a_benchmark_and_fills_a_page(tool, tmp_path, monkeypatch, capsys):
    figures = tmp_path / "docs" / "benchmarks"
    figures.mkdir(parents=True)
    rows = [
        {"stage": stage, "dtype": dtype, "seconds": {"IoU-Net": [value, value * 2, value * 3]}}
        for dtype, factor in (("float32", 1), ("bfloat16", 0.5))
        for stage, value in (("whole", 0.05 * factor), ("training step", 0.125 * factor))
    ]
    work = {"float32": {"IoU-Net": {"million_trainable_parameters": 50.0}}}
    (figures / "gpu.json").write_text(json.dumps({"batch_size": 2, "training_work": work, "rows": rows}))
    measured = [
        {"step": "load training images", "pieces": 100, "seconds": 1.0, "kB a file": 160.0},
        {"step": "score detections", "pieces": 5000, "seconds": 60.0},
    ]
    (figures / "coco_size.json").write_text(json.dumps({"rows": measured}))
    page = tmp_path / "page.md"
    page.write_text("above\n<!-- plan -->\n<!-- plan -->\nbelow\n")
    monkeypatch.setattr(tool, "ROOT", tmp_path)
    words = ["--benchmark", str(figures / "gpu.json"), "--dtype", "bfloat16", "--gpus", "1", "2"]
    monkeypatch.setattr("sys.argv", ["plan_training.py", *words, "--document", str(page)])
    tool.main()
    printed = capsys.readouterr().out
    assert printed.startswith("0.125 s a step of 2 images, 50 ms an image at inference, 200 MB of gradients, 10.0 ms")
    assert "| a step of 2 images a GPU, s | 0.125 | 0.125 |" in printed
    assert "| training, h | 44.4 | 22.2 |" in printed
    assert "|  | 1 GPU | 2 GPUs |" in page.read_text() and page.read_text().endswith("<!-- plan -->\nbelow\n")


def test_figures_that_are_not_there(tool, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tool, "ROOT", tmp_path)
    monkeypatch.setattr("sys.argv", ["plan_training.py", "--step-seconds", "0.2", "--image-seconds", "0.1"])
    with pytest.raises(SystemExit):
        tool.main()
    assert "detector_cpu.json is not there: python tools/benchmark.py --output " in capsys.readouterr().err


def test_both_seconds_are_needed(tool, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["plan_training.py", "--step-seconds", "0.2"])
    with pytest.raises(SystemExit):
        tool.main()
    assert "--step-seconds and --image-seconds go together" in capsys.readouterr().err
