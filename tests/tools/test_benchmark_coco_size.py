"""tools/benchmark_coco_size.py on a five-thousandth of COCO."""

import json

import pytest

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS = [
    "read the training annotations",
    "load training images",
    "score detections, 100 an image",
    "the same, the first of 8 processes",
    "refine detections, 100 an image",
]


@pytest.fixture
def tool(load_tool, monkeypatch, tmp_path):
    """Its steps in this process, one after the other: starting ten takes most of a minute."""
    tool = load_tool("benchmark_coco_size.py")
    folders = (tmp_path / str(number) for number in range(100))

    def here(step, size):
        folder = next(folders)
        folder.mkdir()
        return step(folder, size)

    monkeypatch.setattr(tool, "in_new_process", here)
    return tool


def test_measures_all_steps_and_writes_what_it_prints(tool, monkeypatch, tmp_path, capsys):
    page, figures = tmp_path / "page.md", tmp_path / "folder" / "figures.json"
    page.write_text("above\n<!-- coco size -->\nold\n<!-- coco size -->\nbelow\n")
    words = ["--part", "0.002", "--output", str(figures), "--document", str(page)]
    monkeypatch.setattr("sys.argv", ["benchmark_coco_size.py", *words])
    tool.main()
    rows = json.loads(figures.read_text())["rows"]
    assert [row["step"] for row in rows] == [step for step in STEPS for _ in range(2)]
    assert [row["pieces"] for row in rows] == [118, 236, 10, 10, 10, 10, 10, 10, 10, 20]
    assert all(row["seconds"] > 0 for row in rows)
    assert rows[3]["kB a file"] == pytest.approx(160, rel=0.1)  # as the text says
    assert all(40 < row["AP"] < 80 for row in rows[4:8])  # objects found, but not all boxes good
    assert [row["boxes"] for row in rows[8:]] == [1000, 2000] and rows[-1]["open files"] == 0
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert len(table) == 2 + len(rows)
    assert "\n".join(table) in page.read_text() and "old" not in page.read_text()


def test_simulated_objects_have_an_area_inside_their_image(tool):
    content = tool.simulate(20, 500, tool.np.random.default_rng(1))
    for x, y, width, height in (entry["bbox"] for entry in content["annotations"]):
        assert min(x, y) >= 0 and min(width, height) > 1
        assert x + width <= tool.IMAGE_SIZE[1] and y + height <= tool.IMAGE_SIZE[0]
