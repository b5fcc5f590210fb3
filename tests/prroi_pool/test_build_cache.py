"""The build cache finds finished builds, builds once, checks the files and remembers failures."""

import errno
import os
import shutil
import sys
import threading
import time
from pathlib import Path

import pytest
from processes import finish, run, start

from prroi_pool import build_cache
from prroi_pool.build_cache import BuildError, CompilationError, built, find, forget_failure, remembered_failure


class Build:
    """Writes two files, then raises the given error, if any. Counts its calls."""

    def __init__(self, error: BaseException | None = None):
        self.calls = 0
        self.error = error

    def __call__(self, folder: Path) -> None:
        self.calls += 1
        (folder / "library").write_text("kernels")
        (folder / "objects").write_text("kernels")
        if self.error:
            raise self.error


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path / "cache"


def test_a_build_is_made_once(root):
    build = Build()
    assert find("x_1") is None
    assert built("x_1", build) == built("x_1", build) == find("x_1") == root / "x_1"
    assert build.calls == 1
    assert sorted(path.name for path in (root / "x_1").iterdir()) == ["building", "complete", "library", "objects"]


def test_threads_build_once():
    build = Build()
    threads = [threading.Thread(target=built, args=("x_1", build)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert build.calls == 1


def test_processes_build_once_and_report_that_they_wait(tmp_path):
    code = f"""
import time
from pathlib import Path
from prroi_pool.build_cache import built
def build(folder):
    print("building", flush=True)
    deadline = time.monotonic() + 60
    while not Path({str(tmp_path / "go on")!r}).exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    (folder / "library").touch()
print(built("x_1", build))
"""
    first = start(code)
    assert first.stdout.readline() == "building\n"
    second = start(code)
    assert f"waiting for process {first.pid} on" in second.stderr.readline()
    (tmp_path / "go on").touch()
    first_output, second_output = finish(first)[0], finish(second)[0]
    assert first_output == second_output == f"{tmp_path / 'cache' / 'x_1'}\n"


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: os.truncate(folder / "library", 3),  # a truncated copy
        lambda folder: (folder / "library").write_text("KERNELS"),
        lambda folder: (folder / "library").unlink(),
        lambda folder: os.truncate(folder / "complete", 20),
        lambda folder: os.truncate(folder / "complete", 0),
        lambda folder: (folder / "complete").unlink(),  # a process killed before the end
    ],
)
def test_a_damaged_build_is_rebuilt(damage):
    folder = built("x_1", Build())
    # The old file is replaced. Rewriting it in place would crash a process that has loaded it.
    inode = (folder / "objects").stat().st_ino
    keep = open(folder / "objects")  # so that the file system cannot reuse its inode
    damage(folder)
    assert find("x_1") is None
    build = Build()
    assert built("x_1", build) == folder and build.calls == 1 and find("x_1") == folder
    assert (folder / "library").read_text() == "kernels" and (folder / "objects").stat().st_ino != inode
    keep.close()


def test_files_of_a_killed_build_are_removed(root):
    (root / "x_1" / "tmpabc").mkdir(parents=True)
    (root / "x_1" / "tmpabc" / "part.o").touch()
    (root / "x_1" / "library").touch()
    (root / "x_1" / "lock").touch()
    folder = built("x_1", Build())
    assert sorted(path.name for path in folder.iterdir()) == ["building", "complete", "library", "objects"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX permissions")
def test_a_finished_build_in_a_read_only_folder_is_used(root, tmp_path):
    """In a container image, the user may not be the one who made the build."""
    if os.getuid() == 0 and not shutil.which("setpriv"):
        pytest.skip("root can write everywhere, and setpriv, which would drop this right, is missing")
    folder = built("x_1", Build())
    code = f"""
from pathlib import Path
from prroi_pool.build_cache import built, cache_root
def build(folder):
    raise AssertionError
try:
    Path("{root}/y").touch()
except PermissionError:
    print(built("x_1", build), cache_root().parent)
"""
    for path in (folder, root):
        path.chmod(0o555)
    try:
        wrapper = ("setpriv", "--bounding-set=-dac_override") if os.getuid() == 0 else ()
        stdout, stderr = run(code, wrapper=wrapper, TMPDIR=str(tmp_path))
    finally:
        for path in (folder, root):
            path.chmod(0o755)
    assert (stdout, stderr) == (f"{folder} {tmp_path}\n", "")


def test_a_failed_compilation_is_remembered(root):
    failing = Build(CompilationError("the compiler does not like it"))
    with pytest.raises(CompilationError) as first:
        built("x_1", failing, builder="c++ 12")
    assert str(first.value) == "the compiler does not like it"
    assert remembered_failure("x_1", builder="c++ 12") == "the compiler does not like it"
    with pytest.raises(CompilationError) as second:
        built("x_1", failing, builder="c++ 12")
    assert failing.calls == 1
    for part in (
        "An earlier build failed",
        str(root / "x_1" / "failed"),
        "python -m prroi_pool --build",
        str(first.value),
    ):
        assert part in str(second.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda path: forget_failure("x_1"),
        lambda path: path.unlink(),
        lambda path: os.utime(path, (time.time() - 25 * 3600,) * 2),
        lambda path: path.write_text("{"),
    ],
    ids=["forget_failure", "deleted", "a day ago", "damaged"],
)
def test_a_remembered_failure_is_retried(root, change):
    with pytest.raises(CompilationError):
        built("x_1", Build(CompilationError("no")))
    change(root / "x_1" / "failed")
    assert remembered_failure("x_1") is None
    build = Build()
    folder = built("x_1", build)
    assert build.calls == 1 and not (folder / "failed").exists()


def test_a_failure_is_retried_with_another_compiler():
    with pytest.raises(CompilationError):
        built("x_1", Build(CompilationError("no")), builder="c++ 12")
    assert remembered_failure("x_1", builder="c++ 13") is None
    assert built("x_1", Build(), builder="c++ 13")


@pytest.mark.parametrize(
    ("error", "raised", "message"),
    [
        (BuildError("there is no compiler"), BuildError, "^there is no compiler$"),
        (OSError(errno.ENOSPC, "No space left on device"), BuildError, "^No space left on the disk of .*x_1. Free"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), BuildError, "^No space left on the disk of .*x_1. Free"),
        (OSError(errno.EIO, "Input/output error"), BuildError, "Input/output error. Set TORCH_EXTENSIONS_DIR to"),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
    ],
)
def test_other_failures_are_not_remembered(root, error, raised, message):
    with pytest.raises(raised, match=message):
        built("x_1", Build(error))
    assert [path.name for path in (root / "x_1").iterdir()] == ["building"]
    assert built("x_1", Build())


def test_an_unwritable_cache_is_replaced(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "file" / "cache"))
    folder = built("x_1", Build())
    assert folder.parent.parent == tmp_path and folder.parent.stat().st_mode & 0o777 == 0o700
    assert find("x_1") == folder


def test_a_temporary_folder_of_another_user_is_not_trusted(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "file" / "cache"))
    built("x_1", Build())
    real = os.getuid()
    (tmp_path / f"torch_extensions_{real}").rename(tmp_path / f"torch_extensions_{real + 1}")
    monkeypatch.setattr(os, "getuid", lambda: real + 1)
    assert find("x_1") is None
    with pytest.raises(BuildError, match="No cache folder is writable .* Set TORCH_EXTENSIONS_DIR"):
        built("x_1", Build())


def test_without_a_home_the_temporary_folder_is_used(tmp_path, monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("TORCH_EXTENSIONS_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    assert build_cache.cache_root().parent == tmp_path


def test_the_error_names_the_file_and_holder_of_a_lock_that_is_not_released(root, monkeypatch):
    code = """
import time
from prroi_pool.build_cache import built
def build(folder):
    print(flush=True)
    time.sleep(100)
built("x_1", build)
"""
    holder = start(code)
    holder.stdout.readline()
    monkeypatch.setattr(build_cache, "LOCK_TIMEOUT_S", 0.3)
    try:
        with pytest.raises(BuildError, match=f"process {holder.pid} on .*{root / 'x_1'}"):
            built("x_1", Build())
    finally:
        holder.kill()
        holder.wait()
    assert built("x_1", Build())  # the lock was released with its holder
