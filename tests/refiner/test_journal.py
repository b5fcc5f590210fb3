"""The journal of a run: what was noted survives a stop at any point, and is never mixed up with another run's."""

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
    """The path of a journal of two entries, left by a run that was stopped."""
    journal = Journal(path, RUN, resume=False)
    for entry in ENTRIES:
        journal.append(entry)
    return path


class TestANewJournal:
    @pytest.mark.parametrize("resume", [False, True])
    def test_it_is_empty_and_its_folder_is_made(self, path, resume):
        assert list(Journal(path, RUN, resume=resume)) == []
        assert [json.loads(line) for line in path.read_text().splitlines()] == [RUN]

    def test_entries_come_back_in_order_as_often_as_asked_for(self, path):
        journal = Journal(path, RUN, resume=False)
        for entry in ENTRIES:
            journal.append(entry)
        assert list(journal) == list(journal) == ENTRIES
        journal.append(ENTRIES[0])
        assert list(journal) == [*ENTRIES, ENTRIES[0]]

    def test_an_entry_is_in_the_file_at_once(self, stopped):
        """Without a word from the run, which may be killed."""
        assert [json.loads(line) for line in stopped.read_text().splitlines()] == [RUN, *ENTRIES]

    def test_once_finished_it_is_gone(self, path):
        journal = Journal(path, RUN, resume=False)
        journal.append(ENTRIES[0])
        journal.finish()
        assert not path.exists() and path.parent.is_dir()


class TestResume:
    def test_it_goes_on_with_what_is_there(self, stopped):
        journal = Journal(stopped, RUN, resume=True)
        assert list(journal) == ENTRIES
        journal.append({"image_id": 3})
        assert list(journal) == [*ENTRIES, {"image_id": 3}]
        assert list(Journal(stopped, RUN, resume=True)) == [*ENTRIES, {"image_id": 3}]

    @pytest.mark.parametrize("torn", ['{"image_id": 3, "io', "{", '{"image_id": 3}'])
    def test_a_line_without_an_end_is_cut_off(self, stopped, torn):
        with open(stopped, "a") as file:
            file.write(torn)
        journal = Journal(stopped, RUN, resume=True)
        assert list(journal) == ENTRIES
        journal.append({"image_id": 3})
        assert list(Journal(stopped, RUN, resume=True)) == [*ENTRIES, {"image_id": 3}]

    @pytest.mark.parametrize("content", ["", '{"checkpoint": "a'])
    def test_a_run_that_was_killed_before_its_first_line_was_whole(self, stopped, content):
        stopped.write_text(content)
        journal = Journal(stopped, RUN, resume=True)
        journal.append(ENTRIES[0])
        assert [json.loads(line) for line in stopped.read_text().splitlines()] == [RUN, ENTRIES[0]]


class TestRefused:
    """The message is the user's, and the file stays as it was."""

    @pytest.fixture(autouse=True)
    def as_it_was(self, stopped):
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
    def test_another_run(self, stopped, run, changed):
        with pytest.raises(DataError, match=rf"progress\.jsonl belongs to a run with a different {changed} repeat"):
            Journal(stopped, run, resume=True)


@pytest.mark.parametrize("content", [b"\x00\x00\x00\n", b"hello world\n", b"[1, 2]\n", b"5\n", b"\xff\xfe\n"])
def test_a_damaged_first_line(stopped, content):
    stopped.write_bytes(content)
    with pytest.raises(DataError, match=r"progress\.jsonl is damaged; delete it to start over"):
        Journal(stopped, RUN, resume=True)


@pytest.mark.parametrize("line", [b"\x00\x00\x00\n", b"5\n", b"{,}\n", b"\xff\xfe\n"])
def test_a_damaged_line_further_on(stopped, line):
    stopped.write_bytes(stopped.read_bytes() + line)
    with pytest.raises(DataError, match=r"progress\.jsonl is damaged; delete it to start over"):
        list(Journal(stopped, RUN, resume=True))
