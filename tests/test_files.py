"""Read JSON, and write files atomically."""

import errno
import json
import os

import pytest

from iounet.errors import ConfigError, DataError
from iounet.files import make_folder, read_json, replacing, write_json_list


class TestReadJson:
    def test_content(self, tmp_path):
        (tmp_path / "a.json").write_text('{"ä": [1, 2.5, null]}', encoding="utf-8")
        assert read_json(tmp_path / "a.json", "file") == {"ä": [1, 2.5, None]}

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b'{"a": [1, 2', "not valid JSON"),
            (b"\xff\xfe\x00", "not valid JSON"),
            (b"", "not valid JSON"),
            (b"[" * 100_000, "not valid JSON"),
        ],
        ids=["cut short", "not text", "empty", "nested without end"],
    )
    def test_invalid_json_names_the_file_and_a_remedy(self, tmp_path, content, message):
        path = tmp_path / "a.json"
        path.write_bytes(content)
        with pytest.raises(DataError, match=rf"a\.json: {message} .*if it is truncated, copy or download it again"):
            read_json(path, "file")

    def test_a_missing_file_is_named_with_its_kind(self, tmp_path):
        with pytest.raises(DataError, match=r"none\.json: no such detections file; check the path"):
            read_json(tmp_path / "none.json", "detections file")

    def test_a_folder(self, tmp_path):
        with pytest.raises(DataError, match="cannot be read"):
            read_json(tmp_path, "file")


class TestMakeFolder:
    def test_the_folder_and_its_parents_are_created_and_left_empty(self, tmp_path):
        for _ in range(2):
            make_folder(tmp_path / "a" / "b")
            assert list((tmp_path / "a" / "b").iterdir()) == []

    @pytest.mark.parametrize("below", ["", "run", "runs/run"])
    def test_a_file_in_its_place_is_named(self, tmp_path, below):
        (tmp_path / "file").write_text("kept")
        path = tmp_path / "file" / below
        with pytest.raises(ConfigError) as raised:
            make_folder(path)
        problem = f"cannot be used as the output folder ({tmp_path / 'file'} is a file); choose another"
        assert str(raised.value) == f"{path}: {problem}"
        assert (tmp_path / "file").read_text() == "kept"

    def test_a_read_only_folder(self, tmp_path, monkeypatch):
        def refuse(**options):
            raise OSError(errno.EROFS, "Read-only file system")

        monkeypatch.setattr("tempfile.TemporaryFile", refuse)
        with pytest.raises(ConfigError, match=r"output folder \(Read-only file system\); choose another"):
            make_folder(tmp_path)

    def test_a_full_disk_is_left_to_the_command(self, tmp_path, monkeypatch):
        def refuse(**options):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("tempfile.TemporaryFile", refuse)
        with pytest.raises(OSError, match="No space left"):
            make_folder(tmp_path)


class TestReplacing:
    def test_text_and_bytes(self, tmp_path):
        with replacing(tmp_path / "new" / "a.txt") as file:
            file.write("grün")
        with replacing(tmp_path / "b.bin", "wb") as file:
            file.write(b"\x00\x01")
        assert (tmp_path / "new" / "a.txt").read_text(encoding="utf-8") == "grün"
        assert (tmp_path / "b.bin").read_bytes() == b"\x00\x01"

    def test_the_old_content_stays_until_the_end(self, tmp_path):
        path = tmp_path / "a.txt"
        path.write_text("old")
        with replacing(path) as file:
            file.write("new")
            file.flush()
            assert path.read_text() == "old"
        assert path.read_text() == "new"

    def test_an_error_leaves_the_old_content_and_nothing_else(self, tmp_path):
        path = tmp_path / "a.txt"
        path.write_text("old")
        with pytest.raises(ZeroDivisionError), replacing(path) as file:
            file.write("half")
            _ = 1 / 0
        assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]

    def test_leftovers_of_a_killed_process_are_overwritten(self, tmp_path):
        (tmp_path / ".a.txt.tmp").write_text("half of what an earlier process wrote")
        with replacing(tmp_path / "a.txt") as file:
            file.write("new")
        assert os.listdir(tmp_path) == ["a.txt"] and (tmp_path / "a.txt").read_text() == "new"


class TestWriteJsonList:
    ENTRIES = [{"image_id": 1, "bbox": [0.1, 2, 3, 4]}, {"image_id": "zwei"}]

    def test_one_entry_per_line(self, tmp_path):
        path = tmp_path / "list.json"
        assert write_json_list(path, iter(self.ENTRIES)) == 2
        assert json.loads(path.read_text()) == self.ENTRIES
        assert path.read_text().splitlines() == [
            "[",
            '{"image_id": 1, "bbox": [0.1, 2, 3, 4]},',
            '{"image_id": "zwei"}',
            "]",
        ]

    def test_an_empty_list(self, tmp_path):
        assert write_json_list(tmp_path / "list.json", []) == 0
        assert json.loads((tmp_path / "list.json").read_text()) == []

    def test_an_error_leaves_the_file_unchanged(self, tmp_path):
        path = tmp_path / "list.json"
        write_json_list(path, self.ENTRIES)
        before = path.read_bytes()

        def broken():
            yield self.ENTRIES[0]
            raise OSError("no space left")

        with pytest.raises(OSError, match="no space left"):
            write_json_list(path, broken())
        assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
