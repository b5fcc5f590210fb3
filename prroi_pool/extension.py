"""Loads the compiled kernels of a device type, or warns once that plain PyTorch replaces them.

The CPU kernels are a C++ extension, which this module compiles on first use. `cuda_kernels.py` loads the CUDA kernels.

This module calls the compiler directly. torch.utils.cpp_extension needs ninja and setuptools, leaves a lock file behind
when it is killed, and after a failed build skips the next one in the same process.
"""

import contextlib
import errno
import functools
import hashlib
import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from . import build_cache
from .build_cache import BuildError, CompilationError

SOURCES = Path(__file__).resolve().parent / "csrc"
DEVICE_TYPES = ("cpu", "cuda")
# Namespace of the operators, derived from the package's path because one process may import several copies of this
# folder. Folder names such as my-project or 3rdparty are not identifiers, but a namespace must be one.
NAMESPACE = re.sub(r"^(?=\d)", "_", re.sub(r"\W", "_", __package__, flags=re.ASCII))
MODULE = "prroi_pool_cpu"
# Lines of an error that a warning shows. A compiler can print hundreds.
MAX_LINES = 20

_thread_lock = threading.RLock()
_outcomes: dict[str, Any] = {}


@functools.cache
def kernels(device_type: str) -> Any:
    """Return the compiled kernels for tensors of a device type ("cpu", "cuda", ...), and build them if necessary.

    Returns None if `reference.py` replaces them: for other device types, if PRROI_POOL_BACKEND=reference is set, and if
    the build fails. A failed build warns once.
    """
    if device_type not in DEVICE_TYPES or os.environ.get("PRROI_POOL_BACKEND") == "reference":
        return None
    try:
        return load(device_type)
    except BuildError as error:
        lines = str(error).splitlines()
        if len(lines) > MAX_LINES:
            lines[MAX_LINES:] = [f"... ({len(lines) - MAX_LINES} more lines)"]
        warnings.warn(
            "prroi_pool falls back to plain PyTorch, with the same results but more slowly, because the "
            f"{device_type.upper()} kernels are not available. " + "\n".join(lines) + "\n"
            f"Run `python -m {__package__}` for details.",
            stacklevel=3,
        )
        return None


def load(device_type: str) -> Any:
    """Return the kernels, and build them if necessary.

    Returns:
        `CudaKernels` for "cuda"; for "cpu" a module with the functions of csrc/prroi_pool.h.

    Raises:
        BuildError: the kernels cannot be built or loaded. Later calls in the same process raise the same error.
    """
    with _thread_lock:
        if device_type not in _outcomes:
            try:
                _outcomes[device_type] = _load_cpu() if device_type == "cpu" else _load_cuda()
            except BuildError as error:
                _outcomes[device_type] = error
        outcome = _outcomes[device_type]
    if isinstance(outcome, BuildError):
        raise outcome
    return outcome


def _load_cuda() -> Any:
    from . import cuda_kernels

    return cuda_kernels.load()


def _load_cpu() -> ModuleType:
    name = build_name()
    # Looked up first: a finished build needs no compiler.
    folder = build_cache.find(name) or build_cache.built(name, _compile, builder=compiler_identity())
    module = _import(folder / (MODULE + (".pyd" if sys.platform == "win32" else ".so")))
    module.register_operators(NAMESPACE, "CPU")
    return module


def build_name() -> str:
    """Return the name of the CPU kernels in the build cache.

    It contains a hash of everything that the kernels depend on and that is known without running a compiler.
    """
    parts = [torch.__version__, torch.compiled_with_cxx11_abi(), sysconfig.get_config_var("SOABI")]
    parts += [compiler_command(), *compile_flags(), _cpu_model()]
    for path in sources(with_headers=True):
        parts += [path.name, path.read_text(encoding="utf-8")]
    # CXX may hold bytes that the locale's encoding cannot decode.
    key = hashlib.sha256(chr(0).join(map(str, parts)).encode(errors="surrogateescape")).hexdigest()[:16]
    return f"{MODULE}_{key}"


def sources(*, with_headers: bool = False) -> list[Path]:
    suffixes = {".cpp", ".h"} if with_headers else {".cpp"}
    return sorted(path for path in [*SOURCES.glob("*"), *(SOURCES / "cpu").glob("*")] if path.suffix in suffixes)


def compile_flags() -> list[str]:
    """Return the compiler flags, without the include and library paths of torch and Python."""
    if sys.platform == "win32":
        return ["/O2"]
    if sys.platform == "darwin":
        return ["-O3"]
    # -fopenmp is passed only when compiling, not when linking, so the kernels use the threads of torch's own OpenMP
    # library. -march=native is safe because the build's name contains the CPU model.
    return ["-O3", "-fopenmp", *(["-march=native"] if platform.machine() == "x86_64" else [])]


def compiler_command() -> str:
    """Return the compiler command in shell syntax: CXX may name a wrapper or contain flags."""
    return os.environ.get("CXX") or ("cl" if sys.platform == "win32" else "c++")


def find_compiler() -> str:
    """Return the absolute path of the C++ compiler.

    Raises:
        BuildError: no compiler was found.
    """
    program = _compiler_words()[0]
    path = shutil.which(program)
    if path is None:
        raise BuildError(
            f"No C++ compiler found: `{program}` is not on PATH. Install one (e.g. `apt install g++` or "
            "`conda install gxx`), or name one in the environment variable CXX."
        )
    return os.path.abspath(path)


def _compiler_words() -> list[str]:
    # shlex would drop the backslashes of a Windows path.
    return [compiler_command()] if sys.platform == "win32" else shlex.split(compiler_command())


def compiler_identity() -> str:
    """Return the compiler's path, version and search paths. A failed compilation is retried when this text changes."""
    path = Path(find_compiler()).resolve()
    try:
        version = subprocess.run(
            [*_compiler_words(), "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    except OSError as error:
        raise BuildError(
            f"Cannot run the C++ compiler `{compiler_command()}`: {error}. Set CXX to another compiler."
        ) from error
    searched = [os.environ.get(name, "") for name in ("CPATH", "CPLUS_INCLUDE_PATH", "LIBRARY_PATH")]
    return "; ".join([str(path), (version.stdout or version.stderr).partition("\n")[0], *filter(None, searched)])


def _cpu_model() -> str:
    """Return what -march=native depends on. Machines of a cluster may share a cache but differ in CPU."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
    return platform.processor()


def _compile(folder: Path) -> None:
    includes = _include_folders()
    standard = _cpp_standard(includes[0])
    libraries = Path(torch.__file__).parent / "lib"
    names = ["c10", "torch_cpu", "torch", "torch_python"]
    define = f"-DTORCH_EXTENSION_NAME={MODULE}"

    print("prroi_pool: compiling the CPU kernels (once per machine) ...", file=sys.stderr, flush=True)
    start = time.monotonic()
    if sys.platform == "win32":
        python_libraries = Path(sys.base_exec_prefix) / "libs"
        _run(
            [find_compiler(), "/nologo", "/LD", "/MD", "/EHsc", f"/std:{standard}", define, *compile_flags()]
            + [f"/I{include}" for include in includes]
            + [*map(str, sources()), f"/Fe:{MODULE}.pyd", "/link"]
            + [f"/LIBPATH:{libraries}", f"/LIBPATH:{python_libraries}", *(f"{name}.lib" for name in names)],
            folder,
        )
    else:
        compiler = [find_compiler(), *_compiler_words()[1:]]
        abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
        flags = ["-fPIC", f"-std={standard}", define, abi, *compile_flags()]
        # -isystem keeps warnings about torch's headers out of the compiler's output.
        flags += [word for include in includes for word in ("-isystem", str(include))]
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda path: _run([*compiler, *flags, "-c", str(path)], folder), sources()))
        objects = [f"{path.stem}.o" for path in sources()]
        linked = [f"-L{libraries}", *(f"-l{name}" for name in names)]
        linked += ["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else []
        _run([*compiler, "-shared", *objects, *linked, "-o", f"{MODULE}.so"], folder)
    for path in folder.iterdir():
        if path.stem != MODULE:
            path.unlink()
    print(f"prroi_pool: compiled in {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)


def _include_folders() -> list[Path]:
    """Return the include folders of torch, followed by that of Python."""
    torch_include = Path(torch.__file__).parent / "include"
    # With Apple's Python, the default scheme names a folder that does not exist.
    python_include = Path(sysconfig.get_path("include", "nt" if sys.platform == "win32" else "posix_prefix"))
    if not (torch_include / "torch" / "library.h").exists():
        raise BuildError(f"PyTorch's C++ headers are missing from {torch_include}. Install PyTorch from pip or conda.")
    if not (python_include / "Python.h").exists():
        raise BuildError(
            f"Python's C headers are missing from {python_include}. Install them (e.g. `apt install python3-dev` or "
            "`dnf install python3-devel`)."
        )
    return [torch_include, torch_include / "torch" / "csrc" / "api" / "include", python_include]


def _cpp_standard(torch_include: Path) -> str:
    """Return the C++ standard that torch's headers require: "c++17", or "c++20" in recent releases."""
    text = (torch_include / "torch" / "csrc" / "api" / "include" / "torch" / "all.h").read_text(encoding="utf-8")
    match = re.search(r"__cplusplus < 20(\d\d)", text)
    return f"c++{match[1] if match else 17}"


def _run(command: list[str], folder: Path) -> None:
    # LC_ALL=C: messages in English, which this function searches. TMPDIR: temporary files go to the cache's disk.
    environment = os.environ | {"LC_ALL": "C", "TMPDIR": str(folder)}
    result = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    output = (result.stdout + result.stderr).strip()
    if result.returncode == 0:
        return
    if "No space left on device" in output or "Disk quota exceeded" in output:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if result.returncode < 0 or re.search(r"Killed|out of memory|memory exhausted", output):
        raise BuildError(
            f"The C++ compiler `{compiler_command()}` was killed, probably for lack of memory. Free some memory, or "
            f"set CXX to another compiler.\n{output}"
        )
    raise CompilationError(
        f"Compilation failed with `{compiler_command()}`. Set CXX to use another compiler. Output of the compiler:\n"
        + (output or "(none)")
    )


def _import(library: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(MODULE, library)
    assert spec is not None and spec.loader is not None  # None only for an unknown file suffix
    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except ImportError as error:
        if _is_noexec(library):
            raise BuildError(
                f"Cannot load {library}: the file system of {library.parent} does not allow execution (it is mounted "
                "with noexec). Set TORCH_EXTENSIONS_DIR to a folder on another file system."
            ) from error
        raise BuildError(
            f"Cannot load {library}: {error}. Delete the folder {library.parent} to rebuild the kernels."
        ) from error
    return module


def _is_noexec(path: Path) -> bool:
    return hasattr(os, "ST_NOEXEC") and bool(os.statvfs(path).f_flag & os.ST_NOEXEC)
