"""Builds and loads the compiled kernels: the only file here that does.

A kernel module is compiled by torch.utils.cpp_extension on first use, once for the CPU and once for CUDA, so
that a missing CUDA toolkit does not take the CPU kernels away. Each lies in a folder of its own, named after
everything its binary depends on: a new torch, another machine or a changed source gets a new folder and never
a stale binary."""

import contextlib
import functools
import hashlib
import importlib.util
import logging
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from types import ModuleType
from typing import IO, Any

import torch

SOURCES = Path(__file__).resolve().parent / "csrc"
DEVICE_TYPES = ("cpu", "cuda")
# Of the operators. Two copies of this folder, vendored by two projects, can be imported into one process.
NAMESPACE = __package__.replace(".", "_")
# A build takes about a minute; ten are a hint that something is stuck.
LOCK_TIMEOUT_S = 600.0

_thread_lock = threading.RLock()
_outcomes: dict[str, "ModuleType | BuildError"] = {}


class BuildError(RuntimeError):
    """The kernels cannot be built or loaded; the message says why, and what to do about it."""


@functools.cache
def kernels(device_type: str) -> ModuleType | None:
    """The compiled kernels for tensors of a device type ("cpu", "cuda", ...), built if need be.

    None where `reference.py` has to serve: for other devices, where PRROI_POOL_BACKEND=reference asks for it,
    and where the build fails, which is reported with one warning.
    """
    if device_type not in DEVICE_TYPES or os.environ.get("PRROI_POOL_BACKEND") == "reference":
        return None
    try:
        return load(device_type)
    except BuildError as error:
        warnings.warn(
            "prroi_pool computes in plain PyTorch, which is right but slower, because its "
            f"{device_type.upper()} kernels are missing. {error}\n`python -m prroi_pool` shows the details.",
            stacklevel=3,
        )
        return None


def load(device_type: str) -> ModuleType:
    """The kernels for "cpu" or "cuda", built if need be. A failure raises BuildError, the same on every call:
    torch's own `load` would on the second call claim that nothing is to be built, and hide the cause."""
    with _thread_lock:
        if device_type not in _outcomes:
            try:
                _outcomes[device_type] = _load(device_type)
            except BuildError as error:
                _outcomes[device_type] = error
        outcome = _outcomes[device_type]
    if isinstance(outcome, BuildError):
        raise outcome
    return outcome


def _load(device_type: str) -> ModuleType:
    try:
        folder = build_folder(device_type)
        if not is_built(folder):
            with _process_lock(folder):
                if not is_built(folder):  # another process may have built it while this one waited
                    _build(device_type, folder)
        return _import(device_type, folder)
    except OSError as error:
        raise BuildError(f"{error}. Set TORCH_EXTENSIONS_DIR to a folder that can be written.") from error


def build_folder(device_type: str) -> Path:
    """Where the kernels lie once they are built. BuildError for "cuda" if they cannot be built here."""
    parts = [torch.__version__, sysconfig.get_config_var("SOABI"), *compile_flags(device_type), compiler_command()]
    parts += [_cpu_model()] if device_type == "cpu" else [nvcc_version(find_cuda_home()), *cuda_architectures()]
    for path in sources(device_type, with_headers=True):
        parts += [path.name, path.read_text(encoding="utf-8")]
    key = hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:16]
    return cache_root() / f"prroi_pool_{device_type}_{key}"


def is_built(folder: Path) -> bool:
    # The mark is set after the build, so that a library half written by a killed process is not taken for a
    # whole one.
    return (folder / "complete").exists()


def sources(device_type: str, *, with_headers: bool = False) -> list[Path]:
    files = [*SOURCES.glob("*"), *(SOURCES / device_type).glob("*")]
    suffixes = {".cpp", ".cu", ".cuh", ".h"} if with_headers else {".cpp", ".cu"}
    return sorted(path for path in files if path.suffix in suffixes)


def cache_root() -> Path:
    """TORCH_EXTENSIONS_DIR, or torch's cache folder of the user, or where neither can be written a temporary
    one."""
    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or _cpp_extension().get_default_build_root())
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root):
            return root
    except OSError:
        user = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "user")
        root = Path(tempfile.gettempdir()) / f"torch_extensions_{user}"
        root.mkdir(mode=0o700, exist_ok=True)
        if hasattr(os, "getuid") and root.stat().st_uid != os.getuid():
            raise BuildError(
                f"{root} belongs to another user. Set TORCH_EXTENSIONS_DIR to a folder of yours."
            ) from None
        return root


def compile_flags(device_type: str) -> list[str]:
    """Of the host compiler. No -std: torch knows which one its headers need."""
    if sys.platform == "win32":
        return ["/O2"]
    if sys.platform == "darwin" or device_type == "cuda":
        return ["-O3"]
    # OpenMP only compiles; it is not linked, so that the kernels use the threads of torch's own OpenMP
    # library. The binary stays on this kind of CPU (its model is part of the folder's name), hence
    # -march=native.
    return ["-O3", "-fopenmp", *(["-march=native"] if platform.machine() == "x86_64" else [])]


def compiler_command() -> str:
    return os.environ.get("CXX") or ("cl" if sys.platform == "win32" else "c++")


def find_compiler() -> str:
    """Path of the C++ compiler; BuildError without one."""
    command = compiler_command()
    path = shutil.which(command)
    if path is None:
        raise BuildError(
            f"There is no C++ compiler: `{command}` is not on PATH. Install one (e.g. `apt install g++`, or "
            "`conda install gxx`) or name it in the environment variable CXX."
        )
    return path


def find_ninja() -> str:
    """Path of ninja, on PATH or in this Python's packages (whose scripts are off PATH if its environment is
    not activated); BuildError without one."""
    path = shutil.which("ninja")
    if path is None:
        with contextlib.suppress(ImportError):
            import ninja

            path = shutil.which("ninja", path=ninja.BIN_DIR)
    if path is None:
        raise BuildError("The build tool ninja is missing. Install it with `pip install ninja`.")
    return path


def find_cuda_home() -> Path:
    """The folder of a CUDA toolkit that fits torch; BuildError without one.

    CUDA_HOME may be malformed, as `:/usr/local/cuda`, which is what appending to an unset variable gives.
    """
    if torch.version.cuda is None:
        raise BuildError("This PyTorch is built without CUDA. Install one with CUDA to use a GPU.")
    named = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or ""
    homes = [Path(part.strip()) for part in named.split(os.pathsep) if part.strip()]
    if nvcc := shutil.which("nvcc"):
        homes += [Path(nvcc).parent.parent, Path(nvcc).resolve().parent.parent]
    homes.append(Path("/usr/local/cuda"))

    wanted = torch.version.cuda.split(".")[0]
    found = []
    for home in homes:
        # A mere script named nvcc, as in /usr/local/bin, has no headers beside it.
        if shutil.which("nvcc", path=home / "bin") and (home / "include" / "cuda_runtime.h").exists():
            version = nvcc_version(home)
            if version.split(".")[0] == wanted:
                return home
            found.append(f"{version} in {home}")
    raise BuildError(
        f"PyTorch is built for CUDA {torch.version.cuda}, but "
        + (f"only nvcc {', '.join(found)} was found" if found else "nvcc was not found")
        + f". Install the CUDA {wanted} toolkit, and set CUDA_HOME to its folder if nvcc is not on PATH."
    )


def nvcc_version(home: Path) -> str:
    output = subprocess.run([home / "bin" / "nvcc", "--version"], capture_output=True, text=True, check=False).stdout
    match = re.search(r"release (\d+\.\d+)", output)
    return match[1] if match else "unknown"


def cuda_architectures() -> list[str]:
    """Compute capabilities to compile for: TORCH_CUDA_ARCH_LIST, or those of the GPUs present."""
    if listed := os.environ.get("TORCH_CUDA_ARCH_LIST"):
        return [listed]
    if not torch.cuda.is_available():
        raise BuildError(
            "PyTorch sees no CUDA GPU. To build for a GPU of another machine, set TORCH_CUDA_ARCH_LIST, "
            "for example to 8.0."
        )
    capabilities = {torch.cuda.get_device_capability(n) for n in range(torch.cuda.device_count())}
    return [f"{major}.{minor}" for major, minor in sorted(capabilities)]


def _cpu_model() -> str:
    """What -march=native depends on: homes are shared between the unlike machines of a cluster."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
    return platform.processor()


def _build(device_type: str, folder: Path) -> None:
    find_compiler()
    path = os.pathsep.join([str(Path(find_ninja()).parent), os.environ.get("PATH", "")])
    cpp_extension = _cpp_extension()
    cuda_home = str(find_cuda_home()) if device_type == "cuda" else cpp_extension.CUDA_HOME
    # torch's own lock. Who holds ours knows that nobody builds here, so a lock still there is a killed
    # process's.
    (folder / "lock").unlink(missing_ok=True)

    print(
        f"prroi_pool: compiling the {device_type.upper()} kernels, once for this machine …",
        file=sys.stderr,
        flush=True,
    )
    start = time.monotonic()
    try:
        with _replaced(os.environ, "PATH", path), _replaced(vars(cpp_extension), "CUDA_HOME", cuda_home):
            cpp_extension.load(
                f"prroi_pool_{device_type}",
                [str(source) for source in sources(device_type)],
                extra_cflags=compile_flags(device_type),
                extra_cuda_cflags=["-O3"],
                build_directory=str(folder),
                with_cuda=device_type == "cuda",
            )
    except Exception as error:  # torch raises RuntimeError, OSError, IndexError, ... and all of them mean the same here
        raise BuildError(
            f"The compilation in {folder} failed:\n{error}\n"
            f"The compiler is `{compiler_command()}`; set CXX to another one if that is not the one you want."
        ) from error
    (folder / "complete").touch()
    print(f"prroi_pool: compiled in {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)


def _import(device_type: str, folder: Path) -> ModuleType:
    name = f"prroi_pool_{device_type}"
    library = folder / (name + (".pyd" if sys.platform == "win32" else ".so"))
    spec = importlib.util.spec_from_file_location(name, library)
    assert spec is not None and spec.loader is not None  # which only another suffix would give
    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.register_operators(NAMESPACE, device_type.upper())
    except ImportError as error:
        raise BuildError(f"{library} cannot be loaded: {error}. Delete its folder to have it built anew.") from error
    return module


@contextlib.contextmanager
def _process_lock(folder: Path) -> Iterator[None]:
    """Lets one process at a time build in the folder. The operating system frees the lock when its holder
    dies."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "building"
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
                print(f"prroi_pool: waiting for {holder} to compile …", file=sys.stderr, flush=True)
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


@contextlib.contextmanager
def _replaced(mapping: MutableMapping[str, Any], key: str, value: Any) -> Iterator[None]:
    before = mapping.get(key)
    mapping[key] = value
    try:
        yield
    finally:
        if before is None:
            del mapping[key]
        else:
            mapping[key] = before


def _cpp_extension() -> ModuleType:
    # Importing it warns of a toolkit without a GPU, which is no fault of a CPU build.
    logger = logging.getLogger("torch.utils.cpp_extension")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        from torch.utils import cpp_extension
    finally:
        logger.setLevel(level)
    return cpp_extension
