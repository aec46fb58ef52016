"""Writing is all or nothing: kill -9, a full disk, links, many writers."""

import os
import resource
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from sparse_vdit import Geometry, Pattern, SparsePlan
from sparse_vdit.plan import ModelIdentity
from sparse_vdit.plan.file import write_atomic

MODEL = ModelIdentity("WanTransformer3DModel", 2, 2, 64)
GEOMETRY = Geometry(2, 8, 8, block_q=16, block_k=16)


def plan_of(width, note=""):
    pattern = Pattern.diagonal(half_width=width)
    return SparsePlan.uniform(MODEL, GEOMETRY, pattern, provenance={"width": width, "note": note})


WRITER = """
import sys
from sparse_vdit.plan.file import write_atomic
plans = [b"a" * 2_000_000, b"b" * 1_500_000]
print("ready", flush=True)
while True:
    for data in plans:
        write_atomic(sys.argv[1], "plan.json", data)
"""


def test_kill_9_leaves_a_whole_file(tmp_path):
    write_atomic(tmp_path, "plan.json", b"a" * 2_000_000)
    for round_ in range(12):
        writer = subprocess.Popen([sys.executable, "-P", "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE)
        assert writer.stdout.readline() == b"ready\n"
        time.sleep(0.003 + 0.004 * round_)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        found = (tmp_path / "plan.json").read_bytes()
        assert found in (b"a" * 2_000_000, b"b" * 1_500_000), (round_, len(found), found[:1])


def test_a_full_disk_leaves_the_old_file(tmp_path):
    plan_of(15).save_pretrained(tmp_path)
    before = (tmp_path / "plan.json").read_bytes()
    code = """
        import resource, sys
        sys.path.insert(0, sys.argv[2])
        from test_writing import plan_of
        big = plan_of(31, "x" * 100_000)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        try:
            big.save_pretrained(sys.argv[1])
        except OSError as error:
            print(type(error).__name__, error.errno)
    """
    done = subprocess.run(
        [sys.executable, "-P", "-c", textwrap.dedent(code), str(tmp_path), os.path.dirname(__file__)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("OSError"), done
    assert os.listdir(tmp_path) == ["plan.json"]
    assert (tmp_path / "plan.json").read_bytes() == before
    assert SparsePlan.from_pretrained(tmp_path) == plan_of(15)
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 20_000


def test_an_error_while_writing_leaves_the_old_file(tmp_path, monkeypatch):
    plan_of(15).save_pretrained(tmp_path)
    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:

            def fail(*args, **kwargs):
                raise OSError(28, "No space left on device")

            patch.setattr(os, name, fail)
            with pytest.raises(OSError, match="No space left"):
                plan_of(31).save_pretrained(tmp_path)
        assert os.listdir(tmp_path) == ["plan.json"]
        assert SparsePlan.from_pretrained(tmp_path) == plan_of(15)


def test_a_link_is_replaced_and_never_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    folder = tmp_path / "plans"
    folder.mkdir()
    (folder / "plan.json").symlink_to(victim)
    plan_of(15).save_pretrained(folder)
    assert victim.read_text() == "mine"
    assert not (folder / "plan.json").is_symlink()
    assert SparsePlan.from_pretrained(folder) == plan_of(15)


def test_writers_do_not_disturb_each_other(tmp_path):
    plans = [plan_of(15 + 16 * n, "x" * 1000 * n) for n in range(4)]
    hashes = {plan.hash for plan in plans}
    errors = []

    def write(plan):
        try:
            for _ in range(15):
                plan.save_pretrained(tmp_path)
                assert SparsePlan.from_pretrained(tmp_path).hash in hashes
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(plan,)) for plan in plans]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert os.listdir(tmp_path) == ["plan.json"]


def test_a_folder_in_the_way_is_an_error(tmp_path):
    (tmp_path / "plan.json").mkdir()
    with pytest.raises(OSError, match=r"plan\.json"):
        plan_of(15).save_pretrained(tmp_path)
    assert os.listdir(tmp_path) == ["plan.json"]
