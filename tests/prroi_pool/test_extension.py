"""Building and loading: what users meet on machines that are not ours. Each case runs in a process of its
own."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import prroi_pool
from prroi_pool import extension

PACKAGE = Path(prroi_pool.__file__).parent
# Prints what the kernels and what the reference give for a known case; both are 1.75, 2.25, 2.75, 3.25.
POOL = """
import torch
from prroi_pool import prroi_pool2d
features, rois = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]), torch.tensor([[0.0, 0, 0, 1, 1]])
for _ in range(2):
    print(prroi_pool2d(features, rois, 2, 2, 1.0).flatten().tolist())
"""
POOLED = "[1.75, 2.25, 2.75, 3.25]\n" * 2


def start(code: str, *, path: Path = PACKAGE.parent, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(path)} | environment,
        cwd=path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen) -> tuple[str, str]:
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    return stdout, stderr


def run(code: str, **environment) -> tuple[str, str]:
    return finish(start(code, **environment))


@pytest.fixture
def compiler() -> str:
    if (path := shutil.which(extension.compiler_command())) is None:
        pytest.skip("needs a C++ compiler")
    return path


@pytest.mark.slow
def test_two_processes_build_once_despite_an_orphan_lock(compiler, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    folder = extension.build_folder("cpu")
    folder.mkdir()
    (folder / "lock").touch()  # what a killed build of torch's leaves behind
    outputs = [finish(process) for process in [start(POOL), start(POOL)]]
    assert [stdout for stdout, _ in outputs] == [POOLED, POOLED]
    assert sum("prroi_pool: compiling the CPU kernels" in stderr for _, stderr in outputs) == 1
    assert not any("Warning" in stderr for _, stderr in outputs)
    assert run(POOL) == (POOLED, "")  # and never again


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="kills a process group")
def test_a_killed_build_is_done_again(compiler, tmp_path):
    killed = start(POOL, TORCH_EXTENSIONS_DIR=str(tmp_path))
    assert "compiling the CPU kernels" in killed.stderr.readline()
    time.sleep(3)  # in the midst of it, as a build takes at least ten
    os.killpg(killed.pid, signal.SIGKILL)
    assert killed.wait() != 0
    stdout, stderr = run(POOL, TORCH_EXTENSIONS_DIR=str(tmp_path))
    assert stdout == POOLED and "compiling the CPU kernels" in stderr and "Warning" not in stderr


@pytest.mark.slow
@pytest.mark.parametrize("parent", ["a.b.c", "ltr.external.PreciseRoIPooling.pytorch"])
def test_a_copy_of_the_folder_works_at_any_depth(compiler, tmp_path, parent):
    """The second is where visionml/pytracking imports it from."""
    extension.load("cpu")
    copy = tmp_path.joinpath(*parent.split("."), "prroi_pool")
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    code = POOL.replace("from prroi_pool", f"from {parent}.prroi_pool") + "import sys; print(*sys.modules)"
    stdout, stderr = run(code, path=tmp_path)
    assert stdout.startswith(POOLED) and "Warning" not in stderr
    modules = stdout.removeprefix(POOLED).split()
    assert not {"prroi_pool", "iounet", "torchvision"} & set(modules)


def test_without_a_compiler_one_warning_names_it(tmp_path):
    environment = {"PATH": "", "CXX": "", "TORCH_EXTENSIONS_DIR": str(tmp_path)}
    stdout, stderr = run(POOL, **environment)
    assert stdout == POOLED
    assert stderr.count("UserWarning") == 1 and "`c++` is not on PATH" in stderr and "apt install" in stderr


def test_the_warning_points_to_the_caller(tmp_path):
    _, stderr = run(POOL, PATH="", CXX="", TORCH_EXTENSIONS_DIR=str(tmp_path))
    assert stderr.startswith("<string>:")


def test_without_ninja_the_message_names_it(compiler, tmp_path):
    code = "import sys; sys.modules['ninja'] = None\n" + POOL
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "c++").symlink_to(compiler)
    stdout, stderr = run(code, PATH=str(tmp_path / "bin"), CXX="", TORCH_EXTENSIONS_DIR=str(tmp_path))
    assert stdout == POOLED and "pip install ninja" in stderr


@pytest.mark.slow
def test_a_failing_compiler_is_quoted_on_every_call(compiler, tmp_path):
    broken = tmp_path / "g++"
    broken.write_text(
        f"""#!/bin/sh
case "$*" in
  *-c*) echo "fatal error: the disk is made of cheese" >&2; exit 1;;
esac
exec {compiler} "$@"
"""
    )
    broken.chmod(0o755)
    code = """
from prroi_pool import extension
for _ in range(2):
    try:
        extension.load("cpu")
    except extension.BuildError as error:
        print(str(error))
"""
    stdout, stderr = run(code, CXX=str(broken), TORCH_EXTENSIONS_DIR=str(tmp_path / "cache"))
    assert stdout.count("the disk is made of cheese") >= 2 and "set CXX" in stdout
    assert "skipping" not in stdout + stderr
    stdout, stderr = run(POOL, CXX="false", TORCH_EXTENSIONS_DIR=str(tmp_path / "cache"))
    assert stdout == POOLED and stderr.count("UserWarning") == 1 and "false" in stderr


def test_the_reference_can_be_asked_for(tmp_path):
    stdout, stderr = run(POOL, PRROI_POOL_BACKEND="reference", TORCH_EXTENSIONS_DIR=str(tmp_path))
    assert (stdout, stderr) == (POOLED, "") and not list(tmp_path.iterdir())


def test_an_unwritable_cache_is_replaced(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    root = extension.cache_root()
    assert root.parent == tmp_path and root.stat().st_mode & 0o777 == 0o700


def test_a_lock_that_is_not_released_names_file_and_process(tmp_path, monkeypatch):
    code = f"""
import time
from pathlib import Path
from prroi_pool import extension
with extension._process_lock(Path({str(tmp_path)!r})):
    print(flush=True)
    time.sleep(100)
"""
    holder = start(code)
    holder.stdout.readline()
    monkeypatch.setattr(extension, "LOCK_TIMEOUT_S", 0.3)
    try:
        with pytest.raises(extension.BuildError, match=f"process {holder.pid} on .*{tmp_path}"):
            with extension._process_lock(tmp_path):
                pass
    finally:
        holder.kill()
        holder.wait()
    with extension._process_lock(tmp_path):  # the lock died with its holder
        pass


def test_the_build_folder_is_named_after_what_the_binary_depends_on(monkeypatch):
    folders = {extension.build_folder("cpu")}
    for name, value in [
        ("compile_flags", lambda device_type: ["-O0"]),
        ("_cpu_model", lambda: "another"),
        ("SOURCES", PACKAGE),
    ]:
        with monkeypatch.context() as patch:
            patch.setattr(extension, name, value)
            folders.add(extension.build_folder("cpu"))
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", "9.9.9")
        folders.add(extension.build_folder("cpu"))
    assert len(folders) == 5


@pytest.fixture
def toolkit(tmp_path, monkeypatch):
    """Makes a CUDA toolkit of a version, and hides those of the machine."""
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    monkeypatch.setattr(shutil, "which", lambda name, path=None: path and str(Path(path) / name))
    monkeypatch.delenv("CUDA_PATH", raising=False)

    def make(version: str) -> Path:
        home = tmp_path / f"cuda-{version}"
        for folder in ("bin", "include"):
            (home / folder).mkdir(parents=True)
        (home / "include" / "cuda_runtime.h").touch()
        (home / "bin" / "nvcc").write_text(
            f"#!/bin/sh\necho 'Cuda compilation tools, release {version}, V{version}.1'\n"
        )
        (home / "bin" / "nvcc").chmod(0o755)
        return home

    return make


@pytest.mark.parametrize("named", ["{home}", ":{home}", "{home}:", "/nowhere:{home}", " {home}"])
def test_a_malformed_cuda_home_is_understood(toolkit, monkeypatch, named):
    home = toolkit("13.0")
    monkeypatch.setenv("CUDA_HOME", named.format(home=home))
    assert extension.find_cuda_home() == home


def test_a_toolkit_of_another_major_version_is_refused(toolkit, monkeypatch):
    monkeypatch.setattr(extension, "nvcc_version", lambda home: "12.4")
    monkeypatch.setenv("CUDA_HOME", str(toolkit("12.4")))
    with pytest.raises(
        extension.BuildError, match=r"built for CUDA 13\.2, but only nvcc 12\.4 in .* the CUDA 13 toolkit"
    ):
        extension.find_cuda_home()


@pytest.mark.slow
def test_the_cuda_kernels_compile():
    try:
        extension.find_cuda_home()
    except extension.BuildError as error:
        pytest.skip(f"needs nvcc: {error}")
    environment = {} if torch.cuda.is_available() else {"TORCH_CUDA_ARCH_LIST": "8.0"}
    stdout, _ = run("from prroi_pool import extension; print(dir(extension.load('cuda')))", **environment)
    assert {"forward", "features_backward", "rois_backward"} <= set(eval(stdout))


def test_main_reports_what_is_there_and_what_is_missing(tmp_path):
    command = [sys.executable, "-m", "prroi_pool"]
    environment = os.environ | {"PATH": "", "CXX": "", "TORCH_EXTENSIONS_DIR": str(tmp_path)}
    report = subprocess.run(command, cwd=PACKAGE.parent, env=environment, capture_output=True, text=True, check=False)
    assert report.returncode == 0 and "There is no C++ compiler" in report.stdout and "not built yet" in report.stdout
    report = subprocess.run(
        [*command, "--build"],
        cwd=PACKAGE.parent,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert report.returncode == 1 and "MISSING: There is no C++ compiler" in report.stdout
