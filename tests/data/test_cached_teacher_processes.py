"""Several processes that make the same call of `cached_teacher` share the work."""

import importlib
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from .stored_teacher import cached, files

MODULE = importlib.import_module("keras_ssd.data.cache.cached_teacher")
ROOT = pathlib.Path(__file__).parent.parent.parent
SCRIPT = """
import importlib, pathlib, sys, time
from tests.data.stored_teacher import cached
module = importlib.import_module("keras_ssd.data.cache.cached_teacher")
module.SHARD = 3
if sys.argv[2] == "hangs":
    def encoded(*_):
        print("at it", flush=True)
        time.sleep(600)
    module.Building._encoded = encoded
cached(pathlib.Path(sys.argv[1]))
"""


def started(folder, what):
    command = [sys.executable, "-c", SCRIPT, str(folder), what]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_a_killed_process_leaves_its_part_to_another(tmp_path, monkeypatch):
    monkeypatch.setattr(MODULE, "SHARD", 3)
    cached(tmp_path / "alone")
    expected = files(tmp_path / "alone")
    folder = tmp_path / "shared"
    hanging = started(folder, "hangs")
    other = None
    try:
        assert hanging.stdout.readline() == "at it\n"
        other = started(folder, "works")
        end = time.monotonic() + 120
        while len(list(folder.glob("[0-9]*.json"))) < 7:  # of 8: all but the one that is claimed
            assert time.monotonic() < end
            assert other.poll() is None, "it returned before all was there"
            time.sleep(0.2)
        hanging.send_signal(signal.SIGKILL)
        assert other.wait(60) == 0
    finally:
        for process in filter(None, (hanging, other)):
            process.kill()
            process.wait()
            process.stdout.close()
    assert files(folder) == expected
