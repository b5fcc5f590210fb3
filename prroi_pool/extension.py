"""The compiled kernels of a device type: loads them, or says once why plain PyTorch has to serve.

The CPU kernels are a C++ extension that is compiled here, on first use. `cuda_kernels.py` has those for CUDA.

The compiler is called directly. torch.utils.cpp_extension would need ninja and setuptools, leaves a lock file behind
when it is killed, and claims on the second call that nothing is to be built.
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
# Of the operators. Two projects that contain a copy of this folder can be imported into one process. A folder's name
# (my-project, 3rdparty) need not be an identifier, but a namespace has to.
NAMESPACE = re.sub(r"^(?=\d)", "_", re.sub(r"\W", "_", __package__, flags=re.ASCII))
MODULE = "prroi_pool_cpu"
# Of an error in a warning. A compiler can print hundreds.
MAX_LINES = 20

_thread_lock = threading.RLock()
_outcomes: dict[str, Any] = {}


@functools.cache
def kernels(device_type: str) -> Any:
    """The compiled kernels for tensors of a device type ("cpu", "cuda", ...), built if need be.

    None where `reference.py` has to serve: for other devices, where PRROI_POOL_BACKEND=reference asks for it, and
    where the build fails, which is reported with one warning.
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
            "prroi_pool computes in plain PyTorch, which is right but slower, because its "
            f"{device_type.upper()} kernels are missing. " + "\n".join(lines) + "\n"
            f"`python -m {__package__}` shows the details.",
            stacklevel=3,
        )
        return None


def load(device_type: str) -> Any:
    """The kernels, built if need be: `CudaKernels`, or for "cpu" a module with the functions of csrc/prroi_pool.h.

    Raises:
        BuildError: they cannot be built or loaded. Every call of a process raises the same.
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
    # A finished build needs no compiler.
    folder = build_cache.find(name) or build_cache.built(name, _compile, builder=compiler_identity())
    module = _import(folder / (MODULE + (".pyd" if sys.platform == "win32" else ".so")))
    module.register_operators(NAMESPACE, "CPU")
    return module


def build_name() -> str:
    """The name in the cache of the CPU kernels, after what they depend on that can be known without a compiler."""
    parts = [torch.__version__, torch.compiled_with_cxx11_abi(), sysconfig.get_config_var("SOABI")]
    parts += [compiler_command(), *compile_flags(), _cpu_model()]
    for path in sources(with_headers=True):
        parts += [path.name, path.read_text(encoding="utf-8")]
    # CXX may hold bytes that are no text in the locale's encoding.
    key = hashlib.sha256(chr(0).join(map(str, parts)).encode(errors="surrogateescape")).hexdigest()[:16]
    return f"{MODULE}_{key}"


def sources(*, with_headers: bool = False) -> list[Path]:
    suffixes = {".cpp", ".h"} if with_headers else {".cpp"}
    return sorted(path for path in [*SOURCES.glob("*"), *(SOURCES / "cpu").glob("*")] if path.suffix in suffixes)


def compile_flags() -> list[str]:
    """The compiler's flags, but for those that say where torch and Python are."""
    if sys.platform == "win32":
        return ["/O2"]
    if sys.platform == "darwin":
        return ["-O3"]
    # OpenMP only compiles; it is not linked, so that the kernels use the threads of torch's own OpenMP library. The
    # binary stays on this kind of CPU (its model is part of the build's name), hence -march=native.
    return ["-O3", "-fopenmp", *(["-march=native"] if platform.machine() == "x86_64" else [])]


def compiler_command() -> str:
    """As a shell takes it: CXX may name a wrapper, or contain flags."""
    return os.environ.get("CXX") or ("cl" if sys.platform == "win32" else "c++")


def find_compiler() -> str:
    """Path of the C++ compiler.

    Raises:
        BuildError: there is none.
    """
    program = _compiler_words()[0]
    path = shutil.which(program)
    if path is None:
        raise BuildError(
            f"There is no C++ compiler: `{program}` is not on PATH. Install one (e.g. `apt install g++`, or "
            "`conda install gxx`) or name it in the environment variable CXX."
        )
    return os.path.abspath(path)


def _compiler_words() -> list[str]:
    # On Windows backslashes separate folders.
    return [compiler_command()] if sys.platform == "win32" else shlex.split(compiler_command())


def compiler_identity() -> str:
    """What a failed compilation depended on besides the sources: once this has changed, it is tried again."""
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
            f"The compiler `{compiler_command()}` cannot be run: {error}. Set CXX to another one."
        ) from error
    searched = [os.environ.get(name, "") for name in ("CPATH", "CPLUS_INCLUDE_PATH", "LIBRARY_PATH")]
    return "; ".join([str(path), (version.stdout or version.stderr).partition("\n")[0], *filter(None, searched)])


def _cpu_model() -> str:
    """What -march=native depends on: homes are shared between the unlike machines of a cluster."""
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

    print("prroi_pool: compiling the CPU kernels, once for this machine ...", file=sys.stderr, flush=True)
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
        # As system headers, which keeps warnings about torch's out of the compiler's output.
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
    """Those of torch, then that of Python."""
    torch_include = Path(torch.__file__).parent / "include"
    # The default scheme of Apple's Python names a folder that does not exist.
    python_include = Path(sysconfig.get_path("include", "nt" if sys.platform == "win32" else "posix_prefix"))
    if not (torch_include / "torch" / "library.h").exists():
        raise BuildError(f"{torch_include} has no C++ headers of PyTorch. Install PyTorch from pip or conda.")
    if not (python_include / "Python.h").exists():
        raise BuildError(
            f"{python_include} has no C headers of Python. Install them (e.g. `apt install python3-dev`, or "
            "`dnf install python3-devel`)."
        )
    return [torch_include, torch_include / "torch" / "csrc" / "api" / "include", python_include]


def _cpp_standard(torch_include: Path) -> str:
    """The C++ standard that torch's headers ask for: C++17 up to some release, C++20 since."""
    text = (torch_include / "torch" / "csrc" / "api" / "include" / "torch" / "all.h").read_text(encoding="utf-8")
    match = re.search(r"__cplusplus < 20(\d\d)", text)
    return f"c++{match[1] if match else 17}"


def _run(command: list[str], folder: Path) -> None:
    # In English, and with temporary files on the disk that needs space anyway.
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
    hint = f"The compiler is `{compiler_command()}`; set CXX to use another one."
    if result.returncode < 0 or re.search(r"Killed|out of memory|memory exhausted", output):
        raise BuildError(f"The compiler was killed, probably for lack of memory. {hint}\n{output}")
    raise CompilationError(f"The compilation failed. {hint} It printed:\n{output or '(nothing)'}")


def _import(library: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(MODULE, library)
    assert spec is not None and spec.loader is not None  # which only another suffix would give
    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except ImportError as error:
        if _is_noexec(library):
            raise BuildError(
                f"{library} cannot be loaded: the file system of {library.parent} does not allow execution (it is "
                "mounted with noexec). Set TORCH_EXTENSIONS_DIR to a folder on another one."
            ) from error
        raise BuildError(f"{library} cannot be loaded: {error}. Delete its folder to have it built anew.") from error
    return module


def _is_noexec(path: Path) -> bool:
    return hasattr(os, "ST_NOEXEC") and bool(os.statvfs(path).f_flag & os.ST_NOEXEC)
