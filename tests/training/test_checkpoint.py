import os
import pickle
import shlex
from pathlib import Path

import pytest
import torch
from torch import nn

from iounet.training.checkpoint import (
    CheckpointError,
    checkpoint_path,
    load_checkpoint,
    load_newest_checkpoint,
    load_weights_file,
    prune_checkpoints,
    resumable_checkpoints,
    save_checkpoint,
)

CONTENT = {
    "model": {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.tensor([1.0, 2.0])},
    "categories": [{"id": 7, "name": "dog"}],
    "config": "SEED: 0\n",
    "iteration": 12,
    "optimizer": {"state": {}, "param_groups": [{"lr": 0.5, "params": [0, 1]}]},
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "checkpoint.pth"


@pytest.fixture
def saved(path):
    save_checkpoint(path, **CONTENT)
    return path


class TestWriting:
    def test_saved_content_is_loaded(self, saved):
        content = load_checkpoint(saved)
        assert torch.equal(content["model"]["weight"], CONTENT["model"]["weight"])
        assert [content[key] for key in ("categories", "config", "iteration")] == [
            CONTENT[key] for key in ("categories", "config", "iteration")
        ]
        assert [path.name for path in saved.parent.iterdir()] == ["checkpoint.pth"]

    def test_a_new_checkpoint_replaces_the_old(self, saved):
        save_checkpoint(saved, **CONTENT | {"iteration": 13})
        assert load_checkpoint(saved)["iteration"] == 13
        assert [path.name for path in saved.parent.iterdir()] == ["checkpoint.pth"]

    def test_it_is_flushed_to_disk_before_it_is_renamed(self, path, monkeypatch):
        calls = []
        for name in ("fsync", "replace"):
            function = getattr(os, name)
            monkeypatch.setattr(
                os, name, lambda *args, name=name, function=function: (calls.append(name), function(*args))
            )
        save_checkpoint(path, **CONTENT)
        assert calls == ["fsync", "replace"]

    def test_an_interrupted_save_leaves_the_old_file_and_nothing_else(self, saved, monkeypatch):
        before = saved.read_bytes()

        def interrupted(content, file):
            file.write(before[: len(before) // 2])
            raise KeyboardInterrupt

        monkeypatch.setattr(torch, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(saved, **CONTENT | {"iteration": 13})
        assert saved.read_bytes() == before
        assert [path.name for path in saved.parent.iterdir()] == ["checkpoint.pth"]

    def test_a_full_disk_leaves_the_old_file_and_nothing_else(self, saved):
        resource = pytest.importorskip("resource")
        before = saved.read_bytes()
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, hard))
        try:
            with pytest.raises(CheckpointError, match=r"checkpoint\.pth could not be written.*too large.*Free disk sp"):
                save_checkpoint(saved, model={"weight": torch.zeros(1_000_000)})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert saved.read_bytes() == before
        assert [path.name for path in saved.parent.iterdir()] == ["checkpoint.pth"]

    def test_content_that_cannot_be_saved_leaves_nothing(self, path):
        with pytest.raises((pickle.PicklingError, AttributeError)):
            save_checkpoint(path, model=CONTENT["model"], config=lambda: None)
        assert list(path.parent.iterdir()) == []

    def test_the_file_appears_under_its_name_only_when_complete(self, path, monkeypatch):
        replace, sizes = os.replace, []

        def spy(source, target):
            assert not Path(target).exists()
            sizes.append(Path(source).stat().st_size)
            replace(source, target)

        monkeypatch.setattr(os, "replace", spy)
        save_checkpoint(path, **CONTENT)
        assert sizes == [path.stat().st_size]


class TestReading:
    def test_a_missing_file(self, tmp_path):
        with pytest.raises(CheckpointError, match=r"nowhere\.pth: no such weights file"):
            load_checkpoint(tmp_path / "nowhere.pth")

    def test_a_folder(self, tmp_path):
        with pytest.raises(CheckpointError, match=r"is a folder; give a weights file, such as .*/model_final\.pth"):
            load_checkpoint(tmp_path)
        (tmp_path / "cards.pth").touch()
        with pytest.raises(CheckpointError, match=r"such as .*/cards\.pth"):
            load_checkpoint(tmp_path)

    def test_the_message_for_a_url_says_how_to_download_it(self):
        with pytest.raises(CheckpointError) as raised:
            load_weights_file("https://example.org/models/resnet50-0676ba61.pth")
        download = shlex.split(str(raised.value).split("`")[1])
        assert download[0] == "curl" and download[-1] == "https://example.org/models/resnet50-0676ba61.pth"
        assert download[-2] == "weights/resnet50-0676ba61.pth"
        assert str(raised.value).endswith("then give weights/resnet50-0676ba61.pth")

    @pytest.mark.parametrize("content", [b'{"a": 1}', b"<html></html>", pickle.dumps(Path("a"), protocol=2)])
    def test_torchs_advice_to_run_a_files_code_is_not_repeated(self, tmp_path, content):
        (tmp_path / "some.json").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"some\.json .* give a \.pth file written by iounet-train") as raised:
            load_weights_file(tmp_path / "some.json")
        assert "weights_only" not in str(raised.value)

    @pytest.mark.parametrize("zipped", [True, False], ids=["zip format", "legacy format"])
    def test_a_truncated_file(self, path, zipped):
        path.parent.mkdir()
        torch.save({"format": "iounet-1", **CONTENT}, path, _use_new_zipfile_serialization=zipped)
        whole = path.read_bytes()
        # Every length below 20, since the first bytes identify the kind of file; then every 23rd length.
        for length in [*range(20), *range(20, len(whole), 23)]:
            path.write_bytes(whole[:length])
            with pytest.raises(CheckpointError, match=r"checkpoint\.pth.* damaged"):
                load_checkpoint(path)

    def test_damaged_bytes_give_our_error_or_load(self, saved):
        whole = saved.read_bytes()
        generator = torch.Generator().manual_seed(0)
        for _ in range(150):
            damaged = bytearray(whole)
            for position in torch.randint(len(whole), (8,), generator=generator).tolist():
                damaged[position] ^= 0xFF
            saved.write_bytes(damaged)
            try:
                content = load_weights_file(saved)
            except CheckpointError as error:
                assert "checkpoint.pth" in str(error)
            else:  # the damage is in padding, or in zip metadata such as the time
                assert content["iteration"] == 12
                assert all(torch.equal(value, CONTENT["model"][key]) for key, value in content["model"].items())

    def test_every_byte_of_a_weight_is_verified(self, saved):
        whole = saved.read_bytes()
        start = whole.index(CONTENT["model"]["weight"].numpy().tobytes())
        for position in range(start, start + 24):
            saved.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
            torch.load(saved, weights_only=True)  # detects nothing
            with pytest.raises(CheckpointError, match=r"checkpoint\.pth is damaged.*checksum of .*data/0 "):
                load_checkpoint(saved)

    @pytest.mark.parametrize("mask", [0x01, 0x10, 0xFF])
    def test_damage_to_the_zip_directory_is_detected_or_harmless(self, saved, mask):
        whole, expected = saved.read_bytes(), load_checkpoint(saved)
        for position in range(whole.index(b"PK\x01\x02"), len(whole)):
            saved.write_bytes(whole[:position] + bytes([whole[position] ^ mask]) + whole[position + 1 :])
            try:
                content = load_checkpoint(saved)
            except CheckpointError:
                continue
            model = content.pop("model")
            assert content == {key: value for key, value in expected.items() if key != "model"}, position
            assert all(torch.equal(value, expected["model"][key]) for key, value in model.items()), position

    def test_other_weights_need_no_checksums(self, path):
        path.parent.mkdir()
        torch.serialization.set_crc32_options(False)
        try:
            torch.save({"weight": torch.ones(3)}, path)
        finally:
            torch.serialization.set_crc32_options(True)
        assert load_weights_file(path)["weight"].tolist() == [1, 1, 1]

    @pytest.mark.parametrize("content", [b"hello world\n", b"{}", b"\x89PNG\r\n\x1a\n", b"<html></html>", b"q" * 500])
    def test_a_file_of_another_kind(self, path, content):
        path.parent.mkdir()
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"checkpoint\.pth"):
            load_checkpoint(path)

    @pytest.mark.parametrize("zipped", [True, False], ids=["zip format", "legacy format"])
    def test_a_file_with_code_is_refused_and_the_code_not_executed(self, path, tmp_path, zipped, touches_a_file):
        path.parent.mkdir()
        marker = tmp_path / "executed"
        content = {"format": "iounet-1", "model": touches_a_file(marker)}
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(
            CheckpointError, match=r"checkpoint\.pth cannot be read as plain weights.*save a state_dict"
        ):
            load_checkpoint(path)
        assert not marker.exists()
        torch.load(path, weights_only=False)
        assert marker.exists(), "the file would have run its code"

    def test_a_plain_pickle_with_code_is_not_executed(self, path, tmp_path, touches_a_file):
        path.parent.mkdir()
        path.write_bytes(pickle.dumps({"model": touches_a_file(tmp_path / "executed")}, protocol=2))
        with pytest.raises(CheckpointError, match=r"checkpoint\.pth"):
            load_checkpoint(path)
        assert not (tmp_path / "executed").exists()

    def test_a_whole_module_is_refused(self, path):
        path.parent.mkdir()
        torch.save(nn.Linear(2, 2), path)
        with pytest.raises(CheckpointError, match="save a state_dict"):
            load_weights_file(path)

    def test_a_tensor_is_not_a_state_dict(self, path):
        path.parent.mkdir()
        torch.save(torch.zeros(3), path)
        with pytest.raises(CheckpointError, match=r"checkpoint\.pth contains a value of type Tensor; expected"):
            load_weights_file(path)

    def test_a_state_dict_is_not_a_checkpoint(self, path):
        path.parent.mkdir()
        torch.save(nn.Linear(2, 2).state_dict(), path)
        assert set(load_weights_file(path)) == {"weight", "bias"}
        with pytest.raises(CheckpointError, match=r"is not a checkpoint of this project.*set MODEL\.WEIGHTS"):
            load_checkpoint(path)


class TestFolder:
    def test_checkpoints_oldest_first(self, tmp_path):
        for iteration in (900, 20, 12_345_678, 100_000):
            checkpoint_path(tmp_path, iteration).touch()
        for other in (
            "model_final.pth",
            ".iteration_0000001.pth.tmp",
            "iteration_.pth",
            "iteration_0000001.pth.bak",
        ):
            (tmp_path / other).touch()
        found = resumable_checkpoints(tmp_path)
        assert found == [checkpoint_path(tmp_path, iteration) for iteration in (20, 900, 100_000, 12_345_678)]

    def save(self, folder, *iterations):
        for iteration in iterations:
            save_checkpoint(checkpoint_path(folder, iteration), **CONTENT | {"iteration": iteration})
        return resumable_checkpoints(folder)

    def test_the_newest_undamaged_checkpoint_is_loaded(self, tmp_path):
        paths = self.save(tmp_path, 1, 2, 3, 4)
        path, content, damaged = load_newest_checkpoint(paths)
        assert (path, content["iteration"], damaged) == (paths[3], 4, {})
        paths[3].write_bytes(paths[3].read_bytes()[:300])
        flipped = bytearray(paths[2].read_bytes())
        flipped[flipped.index(CONTENT["model"]["weight"].numpy().tobytes())] ^= 1
        paths[2].write_bytes(flipped)
        path, content, damaged = load_newest_checkpoint(paths)
        assert (path, content["iteration"]) == (paths[1], 2)
        assert list(damaged) == [paths[3], paths[2]]
        assert all(str(path) in str(error) and "damaged" in str(error) for path, error in damaged.items())

    def test_a_final_model_is_not_a_checkpoint(self, tmp_path):
        paths = self.save(tmp_path, 1, 2)
        kept = {key: CONTENT[key] for key in ("model", "categories", "config")}
        save_checkpoint(paths[1], **kept)
        path, _, damaged = load_newest_checkpoint(paths)
        assert path == paths[0]
        assert "cannot be resumed from: it has no optimizer, iteration, as is usual" in str(damaged[paths[1]])

    def test_all_checkpoints_damaged(self, tmp_path):
        paths = self.save(tmp_path, 1, 2)
        for path in paths:
            path.write_bytes(b"PK")
        with pytest.raises(
            CheckpointError, match=r"no checkpoint to resume from: .*_0000002\.pth.*_0000001\.pth.*new run"
        ):
            load_newest_checkpoint(paths)

    def test_old_checkpoints_and_partial_files_are_removed(self, tmp_path):
        paths = self.save(tmp_path, 1, 2, 3)
        (tmp_path / ".iteration_0000002.pth.tmp").touch()
        (tmp_path / "iteration_0000004.pth.damaged").touch()
        prune_checkpoints(tmp_path, keep=2)
        assert sorted(tmp_path.iterdir()) == [*paths[1:], tmp_path / "iteration_0000004.pth.damaged"]

    def test_a_missing_folder_has_no_checkpoints(self, tmp_path):
        assert resumable_checkpoints(tmp_path / "nowhere") == []
