"""Stores finished builds, and lets one process build at a time. Independent of any compiler.

A build is a folder `<root>/<name>`. Its name contains a hash of everything that its files depend on, so a new torch
version, another machine or a changed source file gets a new folder and never a stale binary. Besides the build's files,
the folder contains:

    complete   names and SHA-256 digests of the files; written last, so that an incomplete build is detected
    failed     the error of the last attempt, so that the next process does not repeat a compilation that fails
    building   the lock file of the process that builds
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

# A build takes about a minute; after ten, something is probably stuck.
LOCK_TIMEOUT_S = 600.0
# Retry even with the same `builder`, because a failure can have another cause, such as a missing header.
RETRY_AFTER_S = 24 * 3600.0

_thread_lock = threading.RLock()


class BuildError(RuntimeError):
    """Kernels cannot be built or loaded. The message names the cause and the remedy."""


class CompilationError(BuildError):
    """The compiler rejected the sources. `built` remembers this error, because a retry would fail again."""


def built(name: str, build: Callable[[Path], None], *, builder: str = "") -> Path:
    """Return the folder of a finished build, calling `build` first if there is none.

    Args:
        name: name of the build, including a hash of everything that its files depend on.
        build: writes the files into the folder that it receives, which is empty and temporary. It raises
            CompilationError for a failure to remember, BuildError for any other failure, and may raise OSError.
        builder: identifies the compiler. A failure remembered for another compiler is retried.

    Raises:
        BuildError: the build failed, either now or (CompilationError) in an earlier process.
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
                    f"No space left on the disk of {folder}. Free some space, or set TORCH_EXTENSIONS_DIR to a folder "
                    "on another disk."
                ) from error
            raise BuildError(
                f"Cannot build in {folder}: {error}. Set TORCH_EXTENSIONS_DIR to a writable folder."
            ) from error
        return folder


def find(name: str) -> Path | None:
    """Return the folder of a finished, intact build, or None. The folder may be read-only."""
    return next((root / name for root in _roots() if _is_complete(root / name)), None)


def remembered_failure(name: str, *, builder: str = "") -> str | None:
    """Return the error of the last attempt, or None if the next call of `built` will build."""
    for root in _roots():
        with contextlib.suppress(OSError, ValueError, KeyError):
            path = root / name / "failed"
            failure = json.loads(path.read_text(encoding="utf-8"))
            if failure["builder"] == builder and 0 <= time.time() - path.stat().st_mtime < RETRY_AFTER_S:
                return str(failure["message"])
    return None


def forget_failure(name: str) -> None:
    """Make the next call of `built` build again after a remembered failure."""
    for root in _roots():
        with contextlib.suppress(OSError):
            (root / name / "failed").unlink()


def cache_root() -> Path:
    """Return the folder for new builds.

    This is TORCH_EXTENSIONS_DIR if set, otherwise the user's cache, or a temporary folder if that is not writable.

    Raises:
        BuildError: none of these folders is writable.
    """
    for root in _roots():
        with contextlib.suppress(OSError):
            # Other users may need the folder that TORCH_EXTENSIONS_DIR names, as in a container image.
            root.mkdir(parents=True, exist_ok=True, mode=0o777 if root == _named_root() else 0o700)
            with tempfile.TemporaryFile(dir=root):
                if root in _roots():  # false if another user created the temporary folder in the meantime
                    return root
    raise BuildError(
        f"No cache folder is writable (tried {', '.join(map(str, _roots()))}). Set TORCH_EXTENSIONS_DIR to a writable "
        "folder."
    )


def _roots() -> list[Path]:
    """Return the folders that may hold builds, in order of preference."""
    preferred = _named_root() or _user_root()
    roots = [preferred] if preferred else []
    user = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "user")
    temporary = Path(tempfile.gettempdir()) / f"torch_extensions_{user}"
    # Do not use a folder that another user created: a library in it would run with the current user's rights.
    with contextlib.suppress(FileNotFoundError):
        if hasattr(os, "getuid") and temporary.stat().st_uid != os.getuid():
            return roots
    return [*roots, temporary]


def _named_root() -> Path | None:
    named = os.environ.get("TORCH_EXTENSIONS_DIR")
    return Path(named).absolute() if named else None


def _user_root() -> Path | None:
    """Return the folder where torch caches its own extensions, or None for a user without a home."""
    try:
        if sys.platform == "win32":
            cache = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
        elif sys.platform == "darwin":
            cache = Path.home() / "Library" / "Caches"
        else:
            cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # no home, as in a container that runs under an unknown user ID
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
            f"An earlier build failed; its error is stored in {folder / 'failed'}. To retry, run "
            f"`python -m {__package__} --build` or delete that file. {message}"
        )


def _build(folder: Path, build: Callable[[Path], None], builder: str) -> None:
    """Build in a temporary folder, then move the files into `folder`.

    Writing in place would clash with a compiler whose parent process was killed, and would crash a process that has
    loaded the old library.
    """
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
    """Hold a lock file. The operating system releases the lock when the holder dies."""
    with open(path, "a+", encoding="utf-8") as file:
        deadline = time.monotonic() + LOCK_TIMEOUT_S
        waiting = False
        while not _try_lock(file):
            file.seek(0)
            holder = file.read().strip() or "another process"
            if time.monotonic() > deadline:
                raise BuildError(
                    f"Waited {LOCK_TIMEOUT_S:.0f} s for {holder}, which holds the build lock {path}. If that process "
                    "hangs, end it to release the lock."
                )
            if not waiting:
                print(f"prroi_pool: waiting for {holder} to finish compiling ...", file=sys.stderr, flush=True)
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

            # Lock a byte far beyond the text, because Windows does not let others read a locked byte.
            file.seek(1 << 20)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True
