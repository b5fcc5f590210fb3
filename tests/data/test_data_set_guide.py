"""docs/guides/add_data_set.md: its table of labels becomes a data set, and the command prints its report."""

import re
from pathlib import Path

import pytest
import yaml
from PIL import Image

from iounet.config import load_config
from iounet.data import open_dataset
from iounet.data.check import main as check
from iounet.data.convert import main as convert

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "guides" / "add_data_set.md").read_text()


def block(language):
    """Return the only code block of the page in this language."""
    (found,) = re.findall(rf"^( *)```{language}\n(.*?)^ *```", PAGE, re.MULTILINE | re.DOTALL)
    return "\n".join(line.removeprefix(found[0]) for line in found[1].splitlines())


def test_a_table_of_labels_becomes_a_data_set(tmp_path, monkeypatch, capsys):
    images = tmp_path / "data/mine/images"
    images.mkdir(parents=True)
    for name, size in (("a.png", (60, 40)), ("b.png", (50, 50)), ("empty.png", (30, 20))):
        Image.new("RGB", size).save(images / name)
    (tmp_path / "data/mine/labels.csv").write_text(
        "file,class,x1,y1,x2,y2\nb.png,dog,10,5,40.5,45\na.png,cat,0,0,20,30\na.png,dog,30,10,60,40\n"
    )
    monkeypatch.chdir(tmp_path)
    exec(block("python"), {})

    dataset = open_dataset("data/mine/train.json", "data/mine/images", split="train")
    assert [category["name"] for category in dataset.categories] == ["cat", "dog"]
    _, first = dataset[0]
    assert first["boxes"].tolist() == [[0, 0, 20, 30], [30, 10, 60, 40]]
    assert first["labels"].tolist() == [1, 2]
    assert len(dataset) == 3 and len(dataset[2][1]["boxes"]) == 0
    monkeypatch.setattr("sys.argv", ["check", "data/mine/train.json", "data/mine/images"])
    assert check() == 0
    assert "3 images, 3 objects" in capsys.readouterr().out


def test_the_report_is_what_the_command_prints(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("sys.argv", ["convert", "examples/photos/annotations.json"])
    assert convert() == 0
    assert capsys.readouterr().out.rstrip("\n") == block("text").rstrip("\n")


def test_the_config_names_keys_that_exist(tmp_path):
    text = block("yaml").replace("BASE: ", f"BASE: {ROOT / 'configs'}/")
    (tmp_path / "mine.yaml").write_text(text)
    cfg = load_config(tmp_path / "mine.yaml", [])
    assert cfg.INPUT.MIN_SIZE == yaml.safe_load(text)["INPUT"]["MIN_SIZE"]
    assert cfg.DATA.TRAIN_ANNOTATIONS == "data/mine/data.yaml"


@pytest.mark.parametrize("key", ["MODEL.IOU_HEAD.CLASS_AGNOSTIC", "MODEL.ENERGY_HEAD.LOSS", "SOLVER.BASE_LR"])
def test_the_keys_of_the_advice_exist(key):
    assert key in PAGE
    node = load_config(ROOT / "configs" / "cards_small.yaml", [])
    for part in key.split("."):
        node = node[part]
