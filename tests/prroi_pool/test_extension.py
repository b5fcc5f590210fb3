"""Building and loading the CPU kernels under conditions found on users' machines. Most cases run in a new process."""

import os
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from processes import PACKAGE, finish, run, run_main, start

from prroi_pool import build_cache, extension

# Pools a published case twice and prints the results.
POOL = """
import torch
from prroi_pool import prroi_pool2d
features, rois = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]), torch.tensor([[0.0, 0, 0, 1, 1]])
for _ in range(2):
    print(prroi_pool2d(features, rois, 2, 2, 1.0).flatten().tolist())
"""
POOLED = "[1.75, 2.25, 2.75, 3.25]\n" * 2


@pytest.fixture
def compiler() -> str:
    if (path := shutil.which(extension.compiler_command())) is None:
        pytest.skip("needs a C++ compiler")
    return path


@pytest.fixture
def fake_compiler(tmp_path):
    """Return a function that creates a compiler which runs shell code instead of compiling.

    The function's attribute `was_run` reports whether the compiler ran since the last call.
    """
    mark = tmp_path / "was_run"

    def make(code: str) -> Path:
        path = tmp_path / "fake-c++"
        path.write_text(f'#!/bin/sh\n[ "$1" = --version ] && exec echo "fake 1.0"\ntouch "{mark}"\n{code}\n')
        path.chmod(0o755)
        return path

    def was_run() -> bool:
        found = mark.exists()
        mark.unlink(missing_ok=True)
        return found

    make.was_run = was_run
    return make


@pytest.mark.slow
def test_processes_build_once_without_ninja_and_setuptools(compiler, tmp_path):
    environment = {"TORCH_EXTENSIONS_DIR": str(tmp_path)}
    code = "import sys; sys.modules['setuptools'] = sys.modules['ninja'] = None\n" + POOL
    outputs = [finish(process) for process in [start(code, **environment), start(code, **environment)]]
    assert [stdout for stdout, _ in outputs] == [POOLED, POOLED]
    assert sum("prroi_pool: compiling the CPU kernels" in stderr for _, stderr in outputs) == 1
    assert not any("Warning" in stderr for _, stderr in outputs)
    # A finished build is used without a compiler.
    assert run(POOL, PATH="", **environment) == (POOLED, "")
    (library,) = tmp_path.glob("*/*.so")
    os.truncate(library, 20_000)  # as if the disk had been full when the folder was copied
    stdout, stderr = run(POOL, PATH="", **environment)
    assert stdout == POOLED and stderr.count("UserWarning") == 1 and "No C++ compiler found" in stderr


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="kills a process group")
def test_a_killed_build_is_repeated(compiler, tmp_path):
    killed = start(POOL, TORCH_EXTENSIONS_DIR=str(tmp_path))
    assert "compiling the CPU kernels" in killed.stderr.readline()
    time.sleep(3)  # in the middle of a build, which takes at least ten seconds
    os.killpg(killed.pid, signal.SIGKILL)
    assert killed.wait() != 0
    stdout, stderr = run(POOL, TORCH_EXTENSIONS_DIR=str(tmp_path))
    assert stdout == POOLED and "compiling the CPU kernels" in stderr and "Warning" not in stderr


@pytest.mark.slow
@pytest.mark.parametrize("parent", ["a.b.c", "ltr.external.PreciseRoIPooling.pytorch"])
def test_a_copy_of_the_folder_works_at_any_depth(compiler, tmp_path, parent):
    """The second path is the one in visionml/pytracking."""
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


@pytest.mark.slow
def test_a_compiler_wrapper_and_a_folder_name_that_is_not_an_identifier(compiler, tmp_path):
    """importlib accepts my-project, though `import my-project` is invalid. CXX may be several words, as with ccache."""
    copy = tmp_path / "3d my-project" / "prroi_pool"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    code = POOL.replace(
        "from prroi_pool import prroi_pool2d",
        "import importlib; prroi_pool2d = importlib.import_module('3d my-project.prroi_pool').prroi_pool2d",
    )
    code += "print(torch.ops._3d_my_project_prroi_pool.prroi_pool2d(features, rois, 2, 2, 1.0).shape)"
    environment = {"CXX": f"env {compiler} -g0", "TORCH_EXTENSIONS_DIR": str(tmp_path / "with space")}
    stdout, stderr = run(code, path=tmp_path, **environment)
    assert stdout == POOLED + "torch.Size([1, 1, 2, 2])\n" and "Warning" not in stderr


def test_a_failing_compiler_is_quoted_and_not_run_again(fake_compiler, tmp_path):
    cxx = fake_compiler('echo "fatal error: the header is made of cheese" >&2; seq 500 >&2; exit 1')
    environment = {"CXX": str(cxx), "TORCH_EXTENSIONS_DIR": str(tmp_path / "cache")}
    stdout, stderr = run(POOL, **environment)
    assert stdout == POOLED and stderr.count("UserWarning") == 1
    assert "the header is made of cheese" in stderr and "Set CXX to" in stderr and "An earlier build" not in stderr
    assert stderr.count("\n") < 30 and " more lines)" in stderr
    assert fake_compiler.was_run()

    stdout, stderr = run(POOL, **environment)
    assert stdout == POOLED and stderr.count("UserWarning") == 1 and not fake_compiler.was_run()
    assert "An earlier build failed" in stderr and "-m prroi_pool --build" in stderr and "made of cheese" in stderr
    report = run_main(**environment)
    assert report.returncode == 1 and "An earlier build failed" in report.stdout and not fake_compiler.was_run()
    report = run_main("--build", **environment)
    assert report.returncode == 1 and "An earlier" not in report.stdout and fake_compiler.was_run()
    assert "500" in report.stdout

    # A new version of the compiler is tried.
    cxx.write_text(cxx.read_text().replace("fake 1.0", "fake 1.1"))
    run(POOL, **environment)
    assert fake_compiler.was_run()


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ('echo "/tmp/x.s: No space left on device" >&2; seq 300 >&2; exit 1', "No space left on the disk of "),
        ('echo "fatal error: Killed signal terminated program cc1plus" >&2; exit 1', "for lack of memory"),
        ("kill -9 $$", "for lack of memory"),
    ],
)
def test_temporary_failures_are_retried(fake_compiler, tmp_path, code, message):
    environment = {"CXX": str(fake_compiler(code)), "TORCH_EXTENSIONS_DIR": str(tmp_path / "cache")}
    for _ in range(2):
        stdout, stderr = run(POOL, **environment)
        assert stdout == POOLED and stderr.count("UserWarning") == 1 and message in stderr
        assert stderr.count("\n") < 10 and fake_compiler.was_run()


def test_a_compiler_that_cannot_be_run_is_named(tmp_path):
    (tmp_path / "c++").write_text("no program")
    (tmp_path / "c++").chmod(0o755)
    stdout, stderr = run(POOL, CXX=str(tmp_path / "c++"), TORCH_EXTENSIONS_DIR=str(tmp_path / "cache"))
    assert stdout == POOLED and f"Cannot run the C++ compiler `{tmp_path / 'c++'}`" in stderr


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("torch_headers", r"PyTorch's C\+\+ headers are missing"),
        ("python_headers", "Python's C headers are missing.*python3-dev"),
    ],
)
def test_missing_headers_are_named(tmp_path, monkeypatch, folder, message):
    if folder == "torch_headers":
        monkeypatch.setattr(torch, "__file__", str(tmp_path / "__init__.py"))
    else:
        monkeypatch.setattr("sysconfig.get_path", lambda *arguments: str(tmp_path))
    with pytest.raises(build_cache.BuildError, match=message):
        extension._include_folders()


def test_the_error_names_a_folder_that_does_not_allow_execution(tmp_path, monkeypatch):
    """The noexec flag is patched, because mounting a file system needs privileges."""
    monkeypatch.setattr(extension, "_is_noexec", lambda path: True)
    (tmp_path / "prroi_pool_cpu.so").write_text("")
    with pytest.raises(build_cache.BuildError, match=f"file system of {tmp_path} does not allow execution .*noexec"):
        extension._import(tmp_path / "prroi_pool_cpu.so")


@pytest.mark.skipif(not hasattr(os, "ST_NOEXEC"), reason="needs the mount flags of Linux")
def test_noexec_is_detected():
    """Every distribution mounts /proc with noexec."""
    with open("/proc/mounts") as mounts:
        noexec = {line.split()[1]: "noexec" in line.split()[3].split(",") for line in mounts}
    assert extension._is_noexec(Path("/proc")) == noexec["/proc"]
    assert extension._is_noexec(Path("/")) == noexec["/"]


def test_messages_are_ascii(tmp_path):
    """Otherwise print(error) raises UnicodeEncodeError on an ASCII terminal."""
    for path in [*PACKAGE.glob("*.py"), *extension.sources(with_headers=True)]:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            # Only comments and docstrings may contain other characters, and then no quotation mark.
            assert line.isascii() or '"' not in line.replace('"""', ""), f"{path}:{number}"
    environment = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    report = run_main(**environment, PATH="", CXX="gü++", TORCH_EXTENSIONS_DIR=str(tmp_path / "cache-é"))
    assert report.returncode == 1 and "No C++ compiler found" in report.stdout and report.stderr == ""


def test_the_reference_can_be_requested(tmp_path):
    stdout, stderr = run(POOL, PRROI_POOL_BACKEND="reference", TORCH_EXTENSIONS_DIR=str(tmp_path))
    assert (stdout, stderr) == (POOLED, "") and not list(tmp_path.iterdir())


def test_the_build_name_covers_all_dependencies(monkeypatch):
    names = {extension.build_name()}
    for name, value in [
        ("compile_flags", lambda: ["-O0"]),
        ("compiler_command", lambda: "another"),
        ("_cpu_model", lambda: "another"),
        ("SOURCES", PACKAGE),
    ]:
        with monkeypatch.context() as patch:
            patch.setattr(extension, name, value)
            names.add(extension.build_name())
    for name, value in [("__version__", "9.9.9"), ("compiled_with_cxx11_abi", lambda: None)]:
        with monkeypatch.context() as patch:
            patch.setattr(torch, name, value)
            names.add(extension.build_name())
    assert len(names) == 7


@pytest.mark.parametrize("arguments", [(), ("--build",)])
def test_main_reports_what_is_missing(tmp_path, arguments):
    report = run_main(*arguments, PATH="", CXX="", TORCH_EXTENSIONS_DIR=str(tmp_path))
    assert report.returncode == 1 and "MISSING: No C++ compiler found" in report.stdout


def test_main_reports_finished_kernels(compiler, tmp_path):
    extension.load("cpu")
    report = run_main()
    assert report.returncode == 0 and f"ready: {build_cache.find(extension.build_name())}" in report.stdout
    report = run_main(TORCH_EXTENSIONS_DIR=str(tmp_path))
    assert report.returncode == 0 and "not built yet" in report.stdout
