"""Runs Python code in a new process, like a user's script."""

import os
import subprocess
import sys
from pathlib import Path

import prroi_pool

PACKAGE = Path(prroi_pool.__file__).parent


def start(
    code: str, *, path: Path = PACKAGE.parent, wrapper: tuple[str, ...] = (), **environment: str
) -> subprocess.Popen:
    return subprocess.Popen(
        [*wrapper, sys.executable, "-c", code],
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


def run(code: str, **options) -> tuple[str, str]:
    return finish(start(code, **options))


def run_main(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """Run `python -m prroi_pool`."""
    command = [sys.executable, "-m", "prroi_pool", *arguments]
    environment = os.environ | environment
    return subprocess.run(command, cwd=PACKAGE.parent, env=environment, capture_output=True, text=True, check=False)
