"""Models in folders and on the Hugging Face Hub, with huggingface_hub stubbed so that no test needs a network."""

import inspect
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from four_boxes import BOXES, CATEGORIES, LABELS, SCORES

from iounet import IoURefiner
from iounet.config import get_cfg
from iounet.errors import CheckpointError
from iounet.training.checkpoint import load_checkpoint, save_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")


def same_weights(a, b):
    a, b = a.detector.state_dict(), b.detector.state_dict()
    return a.keys() == b.keys() and all(torch.equal(value, b[key]) for key, value in a.items())


@pytest.fixture
def saved(refiner, tmp_path):
    refiner.save_pretrained(tmp_path / "user" / "cards")
    return tmp_path / "user" / "cards"


@pytest.fixture
def without_hub(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)


@pytest.mark.usefixtures("without_hub")
class TestFolders:
    def test_save_and_load(self, refiner, saved, image):
        loaded = IoURefiner.from_pretrained(saved)
        assert same_weights(loaded, refiner)
        assert loaded.categories == CATEGORIES
        given = (image, BOXES, LABELS, SCORES)
        assert torch.equal(loaded.refine(*given).boxes, refiner.refine(*given).boxes)
        assert sorted(path.name for path in saved.iterdir()) == ["README.md", "model_final.pth"]

    def test_a_loaded_model_can_be_saved_again(self, saved, tmp_path):
        loaded = IoURefiner.from_pretrained(str(saved))
        loaded.save_pretrained(str(tmp_path / "again"))
        assert same_weights(IoURefiner.from_pretrained(tmp_path / "again"), loaded)

    def test_the_folder_of_a_run(self, trained):
        assert same_weights(
            IoURefiner.from_pretrained(trained), IoURefiner.from_checkpoint(trained / "model_final.pth")
        )

    def test_a_checkpoint_of_another_name(self, saved):
        file = (saved / "model_final.pth").rename(saved / "cards.pth")
        for name in (saved, file):
            with pytest.raises(CheckpointError, match=rf"IoURefiner\.from_checkpoint\('{re.escape(str(file))}'\)"):
                IoURefiner.from_pretrained(name)

    def test_no_path_of_this_machine_is_saved(self, checkpoint, tiny_cfg, tmp_path):
        """Tests every key whose default or value is a path."""
        secret = {
            key: f"/home/someone/{key.lower()}"
            for key in ("OUTPUT_DIR", "MODEL.WEIGHTS", "MODEL.BACKBONE.WEIGHTS", "DATA.TRAIN_ANNOTATIONS",
                        "DATA.TRAIN_IMAGES", "DATA.VAL_ANNOTATIONS", "DATA.VAL_IMAGES")
        }  # fmt: skip
        content = load_checkpoint(checkpoint) | {"config": tiny_cfg(secret).dump()}
        del content["format"]
        save_checkpoint(tmp_path / "mine.pth", **content)
        IoURefiner.from_checkpoint(tmp_path / "mine.pth").save_pretrained(tmp_path / "shared")
        config = load_checkpoint(tmp_path / "shared" / "model_final.pth")["config"]
        assert yaml.safe_load(config) == yaml.safe_load(tiny_cfg({"OUTPUT_DIR": get_cfg().OUTPUT_DIR}).dump())
        assert "someone" not in (tmp_path / "shared" / "README.md").read_text()

    def test_the_amp_setting_of_training_is_saved(self, checkpoint, tiny_cfg, tmp_path):
        """The model runs without AMP on a CPU; saved there and loaded on a GPU, it uses AMP again."""
        content = load_checkpoint(checkpoint) | {"config": tiny_cfg({"MODEL.AMP": "True"}).dump()}
        del content["format"]
        save_checkpoint(tmp_path / "amp.pth", **content)
        IoURefiner.from_checkpoint(tmp_path / "amp.pth", device="cpu").save_pretrained(tmp_path / "saved")
        config = load_checkpoint(tmp_path / "saved" / "model_final.pth")["config"]
        assert yaml.safe_load(config)["MODEL"]["AMP"] is True

    def test_model_card(self, saved):
        text = (saved / "README.md").read_text()
        _, head, body = text.split("---\n", 2)
        assert yaml.safe_load(head)["library_name"] == "iounet"
        assert "# cards\n" in body and 'from_pretrained("cards")' in body
        assert "cross (3), star (7), triangle (90)" in body and "of 3 classes" in body
        config = body.partition("```yaml\n")[2].partition("```")[0]
        assert yaml.safe_load(config)["MODEL"]["BACKBONE"]["NAME"] == "resnet18"

    def test_an_existing_model_card_is_kept(self, refiner, saved):
        (saved / "README.md").write_text("Mine.")
        refiner.save_pretrained(saved)
        assert (saved / "README.md").read_text() == "Mine."

    def test_a_refiner_without_its_configuration(self, refiner, tmp_path):
        with pytest.raises(ValueError, match="without a configuration cannot be saved"):
            IoURefiner(refiner.detector, CATEGORIES).save_pretrained(tmp_path / "new")
        assert not (tmp_path / "new").exists()

    def test_errors_name_a_remedy(self, refiner, tmp_path):
        with pytest.raises(CheckpointError, match=r"model_final\.pth: no such weights file"):
            IoURefiner.from_pretrained(tmp_path)
        with pytest.raises(CheckpointError, match=r"user/cards: no such folder; .* run pip install huggingface_hub"):
            IoURefiner.from_pretrained("user/cards")
        with pytest.raises(CheckpointError, match=r"run pip install huggingface_hub"):
            refiner.push_to_hub("user/cards")


def test_weights_in_half_precision_are_loaded_in_float32(checkpoint, refiner, tmp_path):
    content = load_checkpoint(checkpoint)
    del content["format"]
    halved = {key: value.half() if value.is_floating_point() else value for key, value in content["model"].items()}
    save_checkpoint(tmp_path / "half.pth", **content | {"model": halved})
    loaded = IoURefiner.from_checkpoint(tmp_path / "half.pth").detector.state_dict()
    for key, value in refiner.detector.state_dict().items():
        assert loaded[key].dtype == value.dtype
        expected = value.half().to(value.dtype) if value.is_floating_point() else value
        assert torch.equal(loaded[key], expected)
    assert any(not torch.equal(loaded[key], value) for key, value in refiner.detector.state_dict().items())


class StubbedHub:
    """The functions of huggingface_hub that are used; models are subfolders of a folder."""

    def __init__(self, root):
        self.root = root
        self.calls = []

    def hf_hub_download(self, repo_id, filename, **options):
        self.calls.append((repo_id, filename, options))
        path = self.root / repo_id / filename
        if not path.exists():
            raise FileNotFoundError(f"404 Client Error.\n\nRepository Not Found for {repo_id}.")
        return str(path)

    def HfApi(self, token):
        self.token = token
        return self

    def create_repo(self, repo_id, *, private, exist_ok):
        assert exist_ok
        (self.root / repo_id).mkdir(parents=True, exist_ok=True)
        self.private = private
        return SimpleNamespace(repo_id=repo_id)

    def file_exists(self, repo_id, filename, *, revision):
        return (self.root / repo_id / filename).exists()

    def upload_folder(self, *, repo_id, folder_path, ignore_patterns, **commit):
        for path in Path(folder_path).iterdir():
            if path.name not in ignore_patterns:
                (self.root / repo_id / path.name).write_bytes(path.read_bytes())
        self.commit = commit
        return f"https://huggingface.co/{repo_id}/commit/1"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    stub = StubbedHub(tmp_path / "hub")
    monkeypatch.setitem(sys.modules, "huggingface_hub", stub)
    return stub


class TestHub:
    def test_push_and_load(self, hub, refiner):
        address = refiner.push_to_hub("user/cards", private=True, token="t", branch="dev", commit_message="First")
        assert address == "https://huggingface.co/user/cards/commit/1"
        assert (hub.token, hub.private) == ("t", True)
        assert hub.commit == {"commit_message": "First", "revision": "dev", "create_pr": None}
        loaded = IoURefiner.from_pretrained("user/cards", revision="dev", local_files_only=True)
        assert same_weights(loaded, refiner)
        assert hub.calls == [("user/cards", "model_final.pth", {"revision": "dev", "local_files_only": True})]
        assert 'from_pretrained("user/cards")' in (hub.root / "user" / "cards" / "README.md").read_text()

    def test_the_model_card_on_the_hub_is_kept(self, hub, refiner):
        refiner.push_to_hub("user/cards")
        card = hub.root / "user" / "cards" / "README.md"
        card.write_text("Written by hand.")
        (card.parent / "model_final.pth").unlink()
        refiner.push_to_hub("user/cards")
        assert card.read_text() == "Written by hand." and (card.parent / "model_final.pth").exists()

    def test_a_local_folder_takes_precedence(self, hub, saved, monkeypatch):
        monkeypatch.chdir(saved.parents[1])
        IoURefiner.from_pretrained("user/cards")
        assert hub.calls == []

    def test_a_missing_model(self, hub):
        with pytest.raises(CheckpointError) as error:
            IoURefiner.from_pretrained("user/card")
        assert str(error.value) == (
            "user/card: no such folder, and no model on the Hugging Face Hub with a file model_final.pth "
            "(404 Client Error.); check the name and the network"
        )


class TestTheLibraryItself:
    """The stub agrees with huggingface_hub, if it is installed."""

    @pytest.fixture
    def library(self):
        return pytest.importorskip("huggingface_hub")

    def test_it_accepts_the_arguments_of_the_stub(self, library):
        inspect.signature(library.hf_hub_download).bind("user/cards", "file", revision=None, local_files_only=True)
        api = library.HfApi(token=None)
        inspect.signature(api.create_repo).bind("user/cards", private=None, exist_ok=True)
        inspect.signature(api.file_exists).bind("user/cards", "README.md", revision=None)
        options = {"commit_message": "", "revision": None, "create_pr": None, "ignore_patterns": []}
        inspect.signature(api.upload_folder).bind(repo_id="user/cards", folder_path=Path(), **options)

    def test_a_model_in_its_cache(self, library, refiner, saved, tmp_path):
        """The cache has the layout that huggingface_hub documents."""
        commit = "0123456789abcdef0123456789abcdef01234567"
        model = tmp_path / "cache" / "models--user--cards"
        (model / "snapshots").mkdir(parents=True)
        (model / "refs").mkdir()
        (model / "refs" / "main").write_text(commit)
        saved.rename(model / "snapshots" / commit)
        loaded = IoURefiner.from_pretrained("user/cards", cache_dir=tmp_path / "cache", local_files_only=True)
        assert same_weights(loaded, refiner)

    @pytest.mark.parametrize("name", ["user/none", "./no folder", "a/b/c"])
    def test_its_errors_become_checkpoint_errors(self, library, tmp_path, name):
        with pytest.raises(CheckpointError, match="no such folder, and no model on the Hugging Face Hub"):
            IoURefiner.from_pretrained(name, cache_dir=tmp_path, local_files_only=True)
