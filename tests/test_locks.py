"""Only one process at a time writes into a folder, and a killed process leaves nothing that blocks the next one."""

import json
import logging
import os
import signal
import socket
import subprocess
import sys

import pytest

from stepreward.errors import UserError
from stepreward.training.locks import LOCK_FILE, FolderLock

HOLD = "import sys, time; from stepreward.training.locks import FolderLock; lock = FolderLock(sys.argv[1]); print('held', flush=True); time.sleep(600)"


@pytest.fixture
def holder(root, tmp_path):
    """A process that holds the lock of `tmp_path`."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], cwd=root, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_folder_in_use_names_the_process_and_its_machine(holder, tmp_path):
    with pytest.raises(UserError, match=f"is in use by process {holder.pid} on host {socket.gethostname()} .*or give another --workdir"):
        FolderLock(tmp_path)


def test_a_lock_ends_with_its_process_however_that_ends(holder, tmp_path):
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    lock = FolderLock(tmp_path)
    assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == os.getpid()
    lock.release()


def test_a_process_that_comes_too_late_leaves_the_holder_s_name(holder, tmp_path):
    before = (tmp_path / LOCK_FILE).read_bytes()
    with pytest.raises(UserError):
        FolderLock(tmp_path)
    assert (tmp_path / LOCK_FILE).read_bytes() == before


def other_process(root, folder):
    done = subprocess.run([sys.executable, "-c", HOLD.replace("600", "0"), str(folder)], cwd=root, capture_output=True, text=True)
    return done.stdout == "held\n"


def test_the_same_process_may_take_a_folder_twice_and_frees_it_with_the_last_release(root, tmp_path):
    first, second = FolderLock(tmp_path), FolderLock(tmp_path)
    first.release()
    first.release()
    assert not other_process(root, tmp_path)
    second.release()
    assert other_process(root, tmp_path)


def test_a_file_system_without_locks_is_said_and_used(tmp_path, monkeypatch, caplog):
    import errno

    import filelock

    def none(self, **_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(filelock.FileLock, "acquire", none)
    with caplog.at_level(logging.WARNING):
        FolderLock(tmp_path).release()
    assert "file system without locks (No locks available)" in caplog.text
