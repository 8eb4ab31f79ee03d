import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from tzrec_core.engine.model_dir_lock import model_dir_lock
from tzrec_core.errors import ConfigError

# Takes the lock, forks a child that does nothing, as a data worker would be, says so, and waits to be killed.
HOLD = """
import os, sys, time
from tzrec_core.engine.model_dir_lock import model_dir_lock
with model_dir_lock(sys.argv[1]):
    if os.fork() == 0:
        print(os.getpid(), flush=True)
    time.sleep(60)
"""


def test_a_second_run_is_refused_and_told_who_holds_the_lock_until_that_one_is_killed(tmp_path):
    run = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    child = int(run.stdout.readline())
    try:
        words = rf"'{tmp_path}' is in use by another training run: process {run.pid} on {socket.gethostname()}, "
        with (
            pytest.raises(ConfigError, match=words + r"started 20\d\d-.*set another model_dir"),
            model_dir_lock(tmp_path),
        ):
            pass
        run.send_signal(signal.SIGKILL)
        run.wait()
        os.kill(child, 0)  # which still lives
        with model_dir_lock(tmp_path):
            assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
    finally:
        run.kill()
        run.wait()
        run.stdout.close()
        os.kill(child, signal.SIGKILL)


def test_two_runs_of_one_process_exclude_each_other_too(tmp_path):
    with (
        model_dir_lock(tmp_path),
        pytest.raises(ConfigError, match=f"process {os.getpid()} on"),
        model_dir_lock(tmp_path),
    ):
        pass


def test_the_lock_is_free_after_the_run_also_when_that_failed(tmp_path):
    with pytest.raises(KeyError), model_dir_lock(tmp_path / "new"):
        raise KeyError
    with model_dir_lock(tmp_path / "new"):
        pass
    assert (tmp_path / "new/.lock").read_text() == ""


def test_other_folders_are_not_locked(tmp_path):
    with model_dir_lock(tmp_path / "one"), model_dir_lock(tmp_path / "other"):
        pass


def test_a_holder_that_has_not_yet_said_who_it_is_still_holds(tmp_path):
    with (tmp_path / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="one that is just starting or ending"), model_dir_lock(tmp_path):
            pass


def test_a_model_dir_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ConfigError, match=r"model_dir = '.*file/run' cannot be written to"),
        model_dir_lock(tmp_path / "file/run"),
    ):
        pass


def test_a_file_system_without_locks_is_said_and_the_run_goes_on(tmp_path, monkeypatch, caplog):
    def refuse(*args):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with model_dir_lock(tmp_path):
        assert "has no locks: do not train into it twice" in caplog.text
