"""Compiling the CUDA kernels, without a GPU: NVRTC is found, its results fit a GPU and are cached, and errors name what
is missing. test_cuda_kernels.py tests the kernels' results."""

import ctypes
import json
import os
import shutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from processes import run, run_main

from prroi_pool import __main__ as command
from prroi_pool import build_cache, cuda_driver, cuda_kernels, extension, nvrtc
from prroi_pool.build_cache import BuildError, CompilationError

ARCHITECTURE = "90"
# Data-centre and desktop GPUs from Turing to Blackwell.
ARCHITECTURES = ("75", "80", "90", "100", "120")
# Limit of a block's static shared memory.
MAX_SHARED_BYTES = 48 << 10
# The maximum is currently 276.
MAX_SPILLED_BYTES = 400


CACHED = nvrtc._library, nvrtc.nvrtc_version, nvrtc.architectures, extension.kernels, cuda_kernels.load


def forget() -> None:
    for function in CACHED:
        function.cache_clear()


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch) -> Iterator[Path]:
    """Provide an empty cache, and forget which NVRTC, driver and kernels the process has loaded."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(extension, "_outcomes", {})
    forget()
    yield tmp_path / "cache"
    forget()


@pytest.fixture(scope="module")
def needs_nvrtc() -> None:
    if torch.version.cuda is None:
        pytest.skip("this PyTorch is built without CUDA")
    try:
        nvrtc.nvrtc_version()
    except BuildError as error:
        pytest.skip(str(error))


@pytest.fixture
def without_nvrtc(monkeypatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", torch.version.cuda or "12.1")
    monkeypatch.setattr(nvrtc, "_folders", lambda major: [])
    monkeypatch.setattr(nvrtc, "_candidates", lambda major: iter(()))


@pytest.fixture
def gpu(monkeypatch) -> None:
    """Make PyTorch report GPUs. There is no driver unless this machine has one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))


@pytest.fixture
def float32_only(monkeypatch) -> None:
    """Compile only the float32 kernels, in a quarter of the time."""
    monkeypatch.setattr(nvrtc, "TYPES", {torch.float32: nvrtc.TYPES[torch.float32]})


@pytest.fixture(scope="module")
def compiled(needs_nvrtc, tmp_path_factory) -> Path:
    """Return a cache that contains the kernels for float32."""
    folder = tmp_path_factory.mktemp("compiled")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_EXTENSIONS_DIR", str(folder))
        nvrtc.load_cubin(torch.float32, ARCHITECTURE)
    return folder


def assert_runnable(cubin: nvrtc.Cubin, dtype: torch.dtype) -> None:
    assert cubin.code.startswith(b"\x7fELF")
    assert list(cubin.kernels) == nvrtc.kernel_names(dtype)
    for name, kernel in cubin.kernels.items():
        assert kernel.symbol.encode() in cubin.code
        assert 0 < kernel.registers <= 255, name
        assert 0 < kernel.shared_bytes <= MAX_SHARED_BYTES, name
        assert kernel.spilled_bytes <= MAX_SPILLED_BYTES, name


# ---- compiling


@pytest.mark.skipif(torch.version.cuda is None, reason="this PyTorch is built without CUDA")
def test_pytorch_for_cuda_includes_nvrtc():
    major = torch.version.cuda.split(".")[0]
    assert nvrtc.nvrtc_version().split(".")[0] == major and ARCHITECTURE in nvrtc.architectures()


@pytest.mark.usefixtures("needs_nvrtc")
def test_kernels_fit_a_gpu(compiled, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(compiled))
    assert_runnable(nvrtc.load_cubin(torch.float32, ARCHITECTURE), torch.float32)


@pytest.mark.slow
@pytest.mark.usefixtures("needs_nvrtc")
def test_main_compiles_for_gpus_of_other_machines(root):
    known = [name for name in ARCHITECTURES if name in nvrtc.architectures()]
    arguments = ("compile", "--arch", *known)
    environment = {"PATH": "", "CXX": "", "CUDA_HOME": ""}
    first = run_main(*arguments, **environment)
    assert first.returncode == 0, first.stderr
    lines = first.stdout.splitlines()
    expected = [
        f"sm_{architecture} {name.replace('prroi_pool::', '')}"
        for architecture in known
        for dtype in nvrtc.TYPES
        for name in nvrtc.kernel_names(dtype)
    ]
    for line, start in zip(lines[:-1], expected, strict=True):
        assert " ".join(line.split()).startswith(start) and line.endswith("bytes spilled")
    assert f"The kernels are in {root}." in lines[-1]
    for architecture in known:
        for dtype in nvrtc.TYPES:
            assert build_cache.find(nvrtc.build_name(dtype, architecture))
            assert_runnable(nvrtc.load_cubin(dtype, architecture), dtype)
    assert first.stderr.count("compiling") == len(known) * len(nvrtc.TYPES)
    second = run_main(*arguments, **environment)
    assert (second.returncode, second.stdout, second.stderr) == (0, first.stdout, "")


def compile_for(*architectures: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["prroi_pool", "compile", "--arch", *architectures])
        return command.main()


@pytest.mark.usefixtures("needs_nvrtc", "float32_only")
@pytest.mark.parametrize("name", ["90", "9.0", "sm_90", "SM_90", "compute_90"])
def test_an_architecture_may_be_spelled_in_several_ways(name, compiled, monkeypatch, capsys):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(compiled))
    assert compile_for(name) == 0
    stdout, stderr = capsys.readouterr()
    assert stdout.count("sm_90 ") == len(nvrtc.kernel_names(torch.float32)) and stderr == ""
    assert f"The kernels are in {compiled}." in stdout


@pytest.mark.usefixtures("needs_nvrtc")
@pytest.mark.parametrize("name", ["30", "abc", "../x", ""])
def test_an_unknown_architecture_is_refused_before_anything_is_compiled(name, root, capsys):
    assert compile_for(ARCHITECTURE, name) == 1
    stdout, stderr = capsys.readouterr()
    assert stdout == "" and stderr.count("\n") == 1 and "does not support sm_" in stderr
    assert all(f"sm_{known}" in stderr for known in nvrtc.architectures())
    assert not root.exists() or not list(root.iterdir())


@pytest.mark.usefixtures("needs_nvrtc")
def test_the_build_name_covers_all_dependencies(monkeypatch, tmp_path):
    names = {nvrtc.build_name(torch.float32, "80"), nvrtc.build_name(torch.float32, "90")}
    names.add(nvrtc.build_name(torch.float64, "90"))
    copy_sources(tmp_path, monkeypatch)
    assert nvrtc.build_name(torch.float32, "90") in names
    (nvrtc.SOURCES / "cuda" / "tensors.cuh").write_text("//")
    names.add(nvrtc.build_name(torch.float32, "90"))
    monkeypatch.setattr(nvrtc, "OPTIONS", ())
    names.add(nvrtc.build_name(torch.float32, "90"))
    monkeypatch.setattr(torch.version, "cuda", "99.9")
    names.add(nvrtc.build_name(torch.float32, "90"))
    assert len(names) == 6


# ---- failing


def copy_sources(tmp_path: Path, monkeypatch) -> None:
    copy = tmp_path / "wïth space" / "csrc"
    shutil.copytree(nvrtc.SOURCES, copy)
    monkeypatch.setattr(nvrtc, "SOURCES", copy)
    monkeypatch.setattr(nvrtc, "INCLUDES", (copy / "cuda", copy / "nvrtc"))


@pytest.mark.usefixtures("needs_nvrtc")
def test_a_folder_with_a_space(tmp_path, monkeypatch):
    copy_sources(tmp_path, monkeypatch)
    nvrtc.load_cubin(torch.float32, ARCHITECTURE)


@pytest.mark.usefixtures("needs_nvrtc", "float32_only", "gpu")
def test_a_failed_compilation_is_quoted_and_remembered(tmp_path, monkeypatch, capsys):
    copy_sources(tmp_path, monkeypatch)
    with open(nvrtc.SOURCES / "cuda" / "tensors.cuh", "a") as file:
        file.write("\nthis is no C++;\n")
    tries = []
    compile_kernels = nvrtc.compile_kernels
    monkeypatch.setattr(nvrtc, "compile_kernels", lambda *arguments: tries.append(0) or compile_kernels(*arguments))
    monkeypatch.setattr(extension, "load", lambda device_type: None)

    assert command._report("cuda", build=False) and "not built yet" in capsys.readouterr().out
    with pytest.raises(CompilationError, match=r"NVRTC \d+\.\d+ failed to compile .* sm_90.*\n.*tensors\.cuh.*error"):
        nvrtc.load_cubin(torch.float32, ARCHITECTURE)
    with pytest.raises(CompilationError, match="(?s)An earlier build failed.*prroi_pool --build.*tensors.cuh"):
        nvrtc.load_cubin(torch.float32, ARCHITECTURE)
    capsys.readouterr()
    assert not command._report("cuda", build=False) and "An earlier build failed" in capsys.readouterr().out
    assert len(tries) == 1
    assert not command._report("cuda", build=True) and "An earlier build" not in capsys.readouterr().out
    assert compile_for(ARCHITECTURE) == 1 and "An earlier build" not in capsys.readouterr().err
    build_cache.forget_failure(nvrtc.build_name(torch.float32, ARCHITECTURE))
    with pytest.raises(CompilationError, match="failed to compile"):
        nvrtc.load_cubin(torch.float32, ARCHITECTURE)
    assert len(tries) == 4
    # Another version of NVRTC may accept the source.
    monkeypatch.setattr(nvrtc, "nvrtc_version", lambda: "99.9")
    with pytest.raises(CompilationError, match=r"^NVRTC 99\.9"):
        nvrtc.load_cubin(torch.float32, ARCHITECTURE)


@pytest.mark.usefixtures("needs_nvrtc")
def test_a_failure_not_caused_by_the_source_is_not_remembered(monkeypatch):
    monkeypatch.setattr(nvrtc, "OPTIONS", ("--no-such-option",))
    for _ in range(2):
        with pytest.raises(BuildError, match=r"^NVRTC .*NVRTC_ERROR_INVALID_OPTION.*\n.*no-such-option") as raised:
            nvrtc.load_cubin(torch.float32, ARCHITECTURE)
        assert not isinstance(raised.value, CompilationError)


# ---- without NVRTC


@pytest.mark.usefixtures("needs_nvrtc")
@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX permissions")
def test_finished_kernels_in_a_read_only_cache_need_no_nvrtc(compiled, tmp_path):
    if os.getuid() == 0 and not shutil.which("setpriv"):
        pytest.skip("root can write everywhere, and setpriv, which would drop this right, is missing")
    root = tmp_path / "read_only"
    shutil.copytree(compiled, root)
    code = f"""
import os, torch
from prroi_pool import nvrtc
nvrtc._candidates = nvrtc._folders = lambda major: iter(())
assert not os.access("{root}", os.W_OK)
print(len(nvrtc.load_cubin(torch.float32, "{ARCHITECTURE}").kernels))
"""
    folders = [root, *root.iterdir()]
    for folder in folders:
        folder.chmod(0o555)
    try:
        wrapper = ("setpriv", "--bounding-set=-dac_override") if os.getuid() == 0 else ()
        stdout, stderr = run(code, wrapper=wrapper, TORCH_EXTENSIONS_DIR=str(root))
    finally:
        for folder in folders:
            folder.chmod(0o755)
    assert (stdout, stderr) == (f"{len(nvrtc.kernel_names(torch.float32))}\n", "")


def warnings_of(device_type: str) -> list[str]:
    """Return the warnings of two attempts to load the kernels. Both attempts must fail."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert extension.kernels(device_type) is None and extension.kernels(device_type) is None
    return [str(warning.message) for warning in caught]


@pytest.mark.usefixtures("without_nvrtc", "gpu")
@pytest.mark.parametrize(
    ("version", "package"), [("12.4", "nvidia-cuda-nvrtc-cu12"), ("13.2", "'nvidia-cuda-nvrtc==13.*'")]
)
def test_without_nvrtc_one_warning_names_its_package(version, package, monkeypatch, capsys):
    monkeypatch.setattr(torch.version, "cuda", version)
    (message,) = warnings_of("cuda")
    assert "falls back to plain PyTorch" in message and f"`pip install {package}`" in message
    assert "`conda install cuda-nvrtc`" in message and f"a CUDA {version[:2]} toolkit" in message
    assert not command._report("cuda", build=False) and "MISSING: NVRTC, the CUDA" in capsys.readouterr().out
    assert compile_for(ARCHITECTURE) == 1 and capsys.readouterr().err.count("\n") == 1


@pytest.mark.usefixtures("gpu")
def test_pytorch_without_cuda(monkeypatch, capsys):
    monkeypatch.setattr(torch.version, "cuda", None)
    (message,) = warnings_of("cuda")
    assert "This PyTorch is built without CUDA." in message
    assert compile_for(ARCHITECTURE) == 1
    stdout, stderr = capsys.readouterr()
    assert (
        stdout == ""
        and stderr == "This PyTorch is built without CUDA. To use a GPU, install a CUDA build of PyTorch.\n"
    )


@pytest.fixture
def toolkit(tmp_path, monkeypatch) -> Path:
    """Create an empty toolkit, and make PyTorch report a CUDA version that does not exist."""
    monkeypatch.setattr(torch.version, "cuda", "77.1")
    folder = tmp_path / "toolkit" / "lib64"
    folder.mkdir(parents=True)
    monkeypatch.setenv("CUDA_HOME", str(folder.parent))
    return folder


needs_linux = pytest.mark.skipif(sys.platform == "win32", reason="uses file names of Linux")


@needs_linux
@pytest.mark.parametrize("name", ["libnvrtc.so.76", "libnvrtc.so.76.1.105", "libnvrtc.so.77"])
def test_nvrtc_of_another_version_is_named(name, toolkit, monkeypatch):
    (toolkit / name).write_text("no library")
    tried = []
    load = ctypes.CDLL
    monkeypatch.setattr(ctypes, "CDLL", lambda path, *rest: tried.append(Path(path).name) or load(path, *rest))
    with pytest.raises(
        BuildError, match=rf"CUDA 77 .* not found \(found files of another version, or damaged ones: .*{toolkit / name}"
    ):
        nvrtc.nvrtc_version()
    assert (name in tried) == (name == "libnvrtc.so.77")


@needs_linux
@pytest.mark.parametrize("value", ["{}", ":{}", "{}:", " {} :/nowhere", "/nowhere:{}"])
def test_a_malformed_cuda_home_is_accepted(value, toolkit, monkeypatch):
    (toolkit / "libnvrtc.so.77.1").touch()
    monkeypatch.setenv("CUDA_HOME", value.format(toolkit.parent))
    assert str(toolkit / "libnvrtc.so.77.1") in nvrtc._candidates("77")
    monkeypatch.delenv("CUDA_HOME")
    assert str(toolkit / "libnvrtc.so.77.1") not in nvrtc._candidates("77")


# ---- GPUs


@pytest.fixture
def old_nvrtc(monkeypatch) -> None:
    monkeypatch.setattr(nvrtc, "nvrtc_version", lambda: "12.1")
    monkeypatch.setattr(nvrtc, "architectures", lambda: ["70", "75", "80", "86", "90"])


@pytest.mark.usefixtures("old_nvrtc")
@pytest.mark.parametrize(
    ("capability", "architecture"),
    [((7, 0), "70"), ((7, 2), "70"), ((8, 0), "80"), ((8, 6), "86"), ((8, 9), "86"), ((9, 0), "90")],
)
def test_a_gpu_runs_code_for_an_older_one_of_its_major_version(capability, architecture):
    assert nvrtc.architecture(*capability) == architecture
    nvrtc.check(nvrtc.architecture(*capability))


def finish_kernels(architecture: str) -> None:
    """Fill the cache with placeholders for kernels that another machine compiled."""

    def build(folder: Path) -> None:
        (folder / "kernels.cubin").write_bytes(b"\x7fELF")
        (folder / "kernels.json").write_text(json.dumps({}))

    for dtype in nvrtc.TYPES:
        build_cache.built(nvrtc.build_name(dtype, architecture), build)


@pytest.mark.usefixtures("old_nvrtc", "gpu")
@pytest.mark.parametrize("capability", [(6, 1), (12, 0)])
def test_a_gpu_that_nvrtc_does_not_support(capability, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    name = "".join(map(str, capability))
    assert nvrtc.architecture(*capability) == name
    with pytest.raises(
        BuildError, match=f"NVRTC 12.1 does not support sm_{name}. It supports sm_70, .*sm_90. .*PyTorch"
    ):
        nvrtc.check(name)
    (message,) = warnings_of("cuda")
    assert f"sm_{name}" in message
    finish_kernels(name)
    nvrtc.check(name)


@pytest.mark.usefixtures("without_nvrtc", "gpu")
def test_kernels_in_the_cache_need_no_nvrtc(monkeypatch, capsys):
    finish_kernels(ARCHITECTURE)
    monkeypatch.setattr(extension, "load", lambda device_type: None)
    nvrtc.check(nvrtc.architecture(9, 0))
    assert command._report("cuda", build=False) and "ready for sm_90\n" in capsys.readouterr().out


@pytest.mark.usefixtures("needs_nvrtc", "gpu")
def test_without_a_driver_one_warning_names_it(monkeypatch):
    class NoDriver:
        def CDLL(self, name):
            raise OSError(f"{name}: cannot open shared object file: No such file or directory")

    monkeypatch.setattr(cuda_driver, "ctypes", NoDriver())
    (message,) = warnings_of("cuda")
    assert "cannot open shared object file" in message and "Install NVIDIA's driver" in message


@pytest.mark.usefixtures("needs_nvrtc", "float32_only", "gpu")
def test_main_reports_and_compiles_for_the_gpus(monkeypatch, capsys):
    monkeypatch.setattr(extension, "load", lambda device_type: None)
    assert command._gpus() == "2 x NVIDIA H100 (9.0)"
    assert command._report("cuda", build=False) and "for sm_90: not built yet" in capsys.readouterr().out
    assert command._report("cuda", build=True) and "ready for sm_90\n" in capsys.readouterr().out
    assert command._report("cuda", build=False) and "ready for sm_90\n" in capsys.readouterr().out
    monkeypatch.setattr(nvrtc, "TYPES", {**nvrtc.TYPES, torch.float64: ("double", "double")})
    assert command._report("cuda", build=False)
    assert "ready for sm_90, float32; other dtypes: not built yet" in capsys.readouterr().out


def test_main_needs_no_cuda_kernels_without_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command._report("cuda", build=True) and "not needed without a GPU" in capsys.readouterr().out
