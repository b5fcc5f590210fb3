"""The journal of a run: entries survive a stop at any point, and runs are never mixed."""

import json

import pytest

from iounet.errors import DataError
from iounet.refiner.journal import Journal

RUN = {"checkpoint": "abc", "list of images": "def"}
ENTRIES = [{"image_id": 1, "ious": [0.5]}, {"image_id": "zwei", "ious": []}]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "runs" / "out" / "progress.jsonl"


@pytest.fixture
def stopped(path):
    """Path of a journal with two entries, left by a stopped run."""
    journal = Journal(path, RUN, resume=False)
    for entry in ENTRIES:
        journal.append(entry)
    return path


class TestANewJournal:
    @pytest.mark.parametrize("resume", [False, True])
    def test_is_empty_and_its_folder_is_created(self, path, resume):
        assert list(Journal(path, RUN, resume=resume)) == []
        assert [json.loads(line) for line in path.read_text().splitlines()] == [RUN]

    def test_entries_can_be_read_repeatedly_in_order(self, path):
        journal = Journal(path, RUN, resume=False)
        for entry in ENTRIES:
            journal.append(entry)
        assert list(journal) == list(journal) == ENTRIES
        journal.append(ENTRIES[0])
        assert list(journal) == [*ENTRIES, ENTRIES[0]]

    def test_an_entry_is_written_immediately(self, stopped):
        """The run may be killed at any time."""
        assert [json.loads(line) for line in stopped.read_text().splitlines()] == [RUN, *ENTRIES]

    def test_finish_deletes_the_file(self, path):
        journal = Journal(path, RUN, resume=False)
        journal.append(ENTRIES[0])
        journal.finish()
        assert not path.exists() and path.parent.is_dir()


class TestResume:
    def test_continues_with_the_existing_entries(self, stopped):
        journal = Journal(stopped, RUN, resume=True)
        assert list(journal) == ENTRIES
        journal.append({"image_id": 3})
        assert list(journal) == [*ENTRIES, {"image_id": 3}]
        assert list(Journal(stopped, RUN, resume=True)) == [*ENTRIES, {"image_id": 3}]

    @pytest.mark.parametrize("torn", ['{"image_id": 3, "io', "{", '{"image_id": 3}'])
    def test_an_incomplete_line_is_removed(self, stopped, torn):
        with open(stopped, "a") as file:
            file.write(torn)
        journal = Journal(stopped, RUN, resume=True)
        assert list(journal) == ENTRIES
        journal.append({"image_id": 3})
        assert list(Journal(stopped, RUN, resume=True)) == [*ENTRIES, {"image_id": 3}]

    @pytest.mark.parametrize("content", ["", '{"checkpoint": "a'])
    def test_an_incomplete_first_line(self, stopped, content):
        stopped.write_text(content)
        journal = Journal(stopped, RUN, resume=True)
        journal.append(ENTRIES[0])
        assert [json.loads(line) for line in stopped.read_text().splitlines()] == [RUN, ENTRIES[0]]


class TestRejected:
    """The error has a message for the user, and the file is not changed."""

    @pytest.fixture(autouse=True)
    def unchanged(self, stopped):
        before = stopped.read_bytes()
        yield
        assert stopped.read_bytes() == before

    def test_without_resume(self, stopped):
        with pytest.raises(DataError, match=r"progress\.jsonl belongs to a run that was stopped; pass --resume .*"):
            Journal(stopped, RUN, resume=False)

    @pytest.mark.parametrize(
        ("run", "changed"),
        [
            (RUN | {"checkpoint": "xyz"}, "checkpoint;"),
            (RUN | {"list of images": None}, "list of images;"),
            ({"checkpoint": 1, "list of images": 2}, "checkpoint and list of images;"),
            (RUN | {"--class-agnostic": False}, "--class-agnostic;"),  # that run had no such option
        ],
    )
    def test_a_different_run(self, stopped, run, changed):
        with pytest.raises(DataError, match=rf"progress\.jsonl belongs to a run with a different {changed} repeat"):
            Journal(stopped, run, resume=True)


@pytest.mark.parametrize("content", [b"\x00\x00\x00\n", b"hello world\n", b"[1, 2]\n", b"5\n", b"\xff\xfe\n"])
def test_a_damaged_first_line(stopped, content):
    stopped.write_bytes(content)
    with pytest.raises(DataError, match=r"progress\.jsonl is damaged; delete it to start over"):
        Journal(stopped, RUN, resume=True)


@pytest.mark.parametrize("line", [b"\x00\x00\x00\n", b"5\n", b"{,}\n", b"\xff\xfe\n"])
def test_a_damaged_later_line(stopped, line):
    stopped.write_bytes(stopped.read_bytes() + line)
    with pytest.raises(DataError, match=r"progress\.jsonl is damaged; delete it to start over"):
        list(Journal(stopped, RUN, resume=True))
