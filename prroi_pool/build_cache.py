"""Where finished builds lie, and how one process at a time makes them. Knows nothing of compilers.

A build is a folder `<root>/<name>`. Its name contains a hash of everything that its files depend on, so a new torch,
another machine or a changed source gets a new folder and never a stale binary. Beside the files lie

    complete   names and SHA-256 of the files; written last, so a build that was killed or cut short is noticed
    failed     why the last try failed, so the next process does not spend the same minute on the same error
    building   the lock of the process that builds
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

# A build takes about a minute; ten suggest that something is stuck.
LOCK_TIMEOUT_S = 600.0
# The cause of a failure can be outside what `builder` names, such as a missing header.
RETRY_AFTER_S = 24 * 3600.0

_thread_lock = threading.RLock()


class BuildError(RuntimeError):
    """Kernels cannot be built or loaded; the message says why, and what to do about it."""


class CompilationError(BuildError):
    """The compiler rejected the sources. Another try would take as long and fail again, so `built` remembers it."""


def built(name: str, build: Callable[[Path], None], *, builder: str = "") -> Path:
    """Return the folder of a finished build, made by `build` if there is none.

    Args:
        name: of the build, with a hash of everything that its files depend on.
        build: writes the files into the folder it is given, an empty temporary one. Raises CompilationError for a
            failure to be remembered, BuildError for any other, and may raise OSError.
        builder: identifies the compiler. A remembered failure of another one is retried.

    Raises:
        BuildError: the build failed, now or (CompilationError) in an earlier process.
    """
    with _thread_lock:
        if finished := find(name):
            return finished
        folder = cache_root() / name
        try:
            folder.mkdir(exist_ok=True)
            with _process_lock(folder / "building"):
                if not _is_complete(folder):  # another process may have built it while this one waited
                    _raise_remembered_failure(folder, builder)
                    _build(folder, build, builder)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise BuildError(
                    f"No space is left on the disk of {folder}. Free some, or set TORCH_EXTENSIONS_DIR to a folder "
                    "on another disk."
                ) from error
            raise BuildError(f"{error}. Set TORCH_EXTENSIONS_DIR to a folder that can be written.") from error
        return folder


def find(name: str) -> Path | None:
    """The folder of a finished and intact build, which may be read-only; None if there is none."""
    return next((root / name for root in _roots() if _is_complete(root / name)), None)


def remembered_failure(name: str, *, builder: str = "") -> str | None:
    """Why the last try to build failed; None if the next call of `built` will try."""
    for root in _roots():
        with contextlib.suppress(OSError, ValueError, KeyError):
            path = root / name / "failed"
            failure = json.loads(path.read_text(encoding="utf-8"))
            if failure["builder"] == builder and 0 <= time.time() - path.stat().st_mtime < RETRY_AFTER_S:
                return str(failure["message"])
    return None


def forget_failure(name: str) -> None:
    """Make the next call of `built` try again."""
    for root in _roots():
        with contextlib.suppress(OSError):
            (root / name / "failed").unlink()


def cache_root() -> Path:
    """The folder for new builds: TORCH_EXTENSIONS_DIR or the user's cache, or a temporary folder if that cannot be
    written."""
    for root in _roots():
        with contextlib.suppress(OSError):
            # The folder named by the user may be for others, too, as in a container image.
            root.mkdir(parents=True, exist_ok=True, mode=0o777 if root == _named_root() else 0o700)
            with tempfile.TemporaryFile(dir=root):
                if root in _roots():  # still: nobody else has made the temporary folder in between
                    return root
    raise BuildError(
        f"None of {', '.join(map(str, _roots()))} can be written. Set TORCH_EXTENSIONS_DIR to a folder that can."
    )


def _roots() -> list[Path]:
    """Folders that may hold builds, the preferred one first."""
    preferred = _named_root() or _user_root()
    roots = [preferred] if preferred else []
    user = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "user")
    temporary = Path(tempfile.gettempdir()) / f"torch_extensions_{user}"
    # Anyone may create a folder of this name, and a library in it would run with this user's rights.
    with contextlib.suppress(FileNotFoundError):
        if hasattr(os, "getuid") and temporary.stat().st_uid != os.getuid():
            return roots
    return [*roots, temporary]


def _named_root() -> Path | None:
    named = os.environ.get("TORCH_EXTENSIONS_DIR")
    return Path(named).absolute() if named else None


def _user_root() -> Path | None:
    """Where torch's own extensions lie."""
    try:
        if sys.platform == "win32":
            cache = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
        elif sys.platform == "darwin":
            cache = Path.home() / "Library" / "Caches"
        else:
            cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # no home: a container may run under a user that it does not know
        return None
    return cache / "torch_extensions"


def _is_complete(folder: Path) -> bool:
    with contextlib.suppress(OSError, ValueError):
        digests = json.loads((folder / "complete").read_text(encoding="utf-8"))
        return bool(digests) and all(_digest(folder / name) == digest for name, digest in digests.items())
    return False


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _raise_remembered_failure(folder: Path, builder: str) -> None:
    message = remembered_failure(folder.name, builder=builder)
    if message is not None:
        raise CompilationError(
            f"An earlier try failed, and its error is kept in {folder / 'failed'}. To try again, run "
            f"`python -m {__package__} --build` or delete that file. {message}"
        )


def _build(folder: Path, build: Callable[[Path], None], builder: str) -> None:
    """Build in a temporary folder and move the files, so that a compiler that outlives a killed process and a process
    that has loaded a damaged library are not disturbed."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != "building":
            path.unlink()
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        try:
            build(Path(scratch))
        except CompilationError as error:
            failure = {"builder": builder, "message": str(error)}
            (folder / "failed").write_text(json.dumps(failure, indent=1), encoding="utf-8")
            raise
        files = [path.rename(folder / path.name) for path in sorted(Path(scratch).iterdir())]
    digests = {path.name: _digest(path) for path in files}
    (folder / "complete").write_text(json.dumps(digests, indent=1), encoding="utf-8")


@contextlib.contextmanager
def _process_lock(path: Path) -> Iterator[None]:
    """Holds a lock file. The operating system releases the lock when its holder dies."""
    with open(path, "a+", encoding="utf-8") as file:
        deadline = time.monotonic() + LOCK_TIMEOUT_S
        waiting = False
        while not _try_lock(file):
            file.seek(0)
            holder = file.read().strip() or "another process"
            if time.monotonic() > deadline:
                raise BuildError(
                    f"{holder} has been building for {LOCK_TIMEOUT_S:.0f} s and holds {path}. End it if it hangs."
                )
            if not waiting:
                print(f"prroi_pool: waiting for {holder} to compile ...", file=sys.stderr, flush=True)
                waiting = True
            time.sleep(0.2)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def _try_lock(file: IO[str]) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            # A byte far beyond the text: Windows would keep others from reading a locked one.
            file.seek(1 << 20)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True
