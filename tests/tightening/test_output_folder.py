"""The output folder: no file of the user is overwritten, and no output is left half written."""

from pathlib import Path

import pytest

from iounet.errors import ConfigError, DataError
from iounet.tightening.output import check_output, replacing_content

NAMES = ("boxes.json", "boxes.csv", "review.html")
RECORD = '{"format": "iounet-tighten-1"}'


def fill(folder: Path, text: str) -> None:
    for name in NAMES:
        (folder / name).write_text(text)
    (folder / "labels").mkdir()
    (folder / "labels" / f"{text}.txt").write_text(text)


def content_of(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


class TestCheckOutput:
    @pytest.mark.parametrize(
        ("output", "source"),
        [("set", "set"), ("set/out", "set"), ("set", "set/labels.json"), (".", "set"), ("set/../set/out", "set")],
    )
    def test_an_overlap_with_the_data_set_is_refused(self, tmp_path, output, source):
        (tmp_path / "set").mkdir()
        with pytest.raises(DataError, match="overlaps the data set"):
            check_output(tmp_path / output, tmp_path / source)

    def test_a_link_into_the_data_set(self, tmp_path):
        (tmp_path / "set").mkdir()
        (tmp_path / "link").symlink_to("set")
        with pytest.raises(DataError, match="overlaps the data set"):
            check_output(tmp_path / "link" / "out", tmp_path / "set")

    def test_new_and_empty_folders(self, tmp_path):
        check_output(tmp_path / "new", tmp_path / "set")
        (tmp_path / "empty").mkdir()
        check_output(tmp_path / "empty", tmp_path / "set")

    def test_a_folder_of_an_earlier_run(self, tmp_path):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "boxes.json").write_text(RECORD)
        check_output(tmp_path / "out", tmp_path / "set")

    def test_the_remains_of_a_killed_process(self, tmp_path):
        (tmp_path / "out" / ".unfinished" / "labels").mkdir(parents=True)
        check_output(tmp_path / "out", tmp_path / "set")
        with replacing_content(tmp_path / "out") as folder:
            fill(folder, "new")
        assert content_of(tmp_path / "out") == dict.fromkeys([*NAMES, "labels/new.txt"], "new")

    @pytest.mark.parametrize("name", ["labels.txt", "boxes.json"])
    def test_a_folder_with_other_files(self, tmp_path, name):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / name).write_text("{}")
        with pytest.raises(DataError, match="contains files that iounet-tighten did not write"):
            check_output(tmp_path / "out", tmp_path / "set")

    def test_a_file(self, tmp_path):
        (tmp_path / "out").write_text("")
        with pytest.raises(DataError, match="is a file"):
            check_output(tmp_path / "out", tmp_path / "set")


class TestReplacingContent:
    def test_a_new_folder(self, tmp_path):
        with replacing_content(tmp_path / "a" / "out") as folder:
            fill(folder, "new")
        assert content_of(tmp_path / "a" / "out") == dict.fromkeys([*NAMES, "labels/new.txt"], "new")

    def test_old_output_is_replaced_and_files_of_the_user_stay(self, tmp_path):
        fill(tmp_path, "old")
        (tmp_path / "decisions.json").write_text("mine")
        with replacing_content(tmp_path) as folder:
            fill(folder, "new")
        expected = dict.fromkeys([*NAMES, "labels/new.txt"], "new") | {"decisions.json": "mine"}
        assert content_of(tmp_path) == expected

    @pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
    def test_an_error_leaves_the_folder_unchanged(self, tmp_path, error):
        fill(tmp_path, "old")
        before = content_of(tmp_path)
        with pytest.raises(error), replacing_content(tmp_path) as folder:
            fill(folder, "new")
            raise error
        assert content_of(tmp_path) == before

    def test_an_error_while_replacing_leaves_the_old_or_the_new(self, tmp_path, monkeypatch):
        """Ctrl-C may be pressed while many label files are being deleted, which takes a while."""
        fill(tmp_path, "old")
        deleted = []

        def interrupted(path, **options):
            deleted.append(path)
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt), replacing_content(tmp_path) as folder:
            fill(folder, "new")
            monkeypatch.setattr("shutil.rmtree", interrupted)
        assert deleted == [tmp_path / ".unfinished"]
        assert {(tmp_path / name).read_text() for name in (*NAMES, "labels/new.txt")} == {"new"}

    def test_a_folder_that_cannot_be_created_fails_at_once(self, tmp_path):
        (tmp_path / "file").write_text("")
        with (
            pytest.raises(ConfigError, match="file is a file.*choose another"),
            replacing_content(tmp_path / "file/out"),
        ):
            pytest.fail("the work has started")

    def test_an_error_leaves_no_new_folder(self, tmp_path):
        with pytest.raises(KeyboardInterrupt), replacing_content(tmp_path / "out"):
            raise KeyboardInterrupt
        assert not (tmp_path / "out").exists()
