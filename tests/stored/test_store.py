# SPDX-License-Identifier: Apache-2.0
"""The store of reference predictions: bits in, bits out, and never half of it."""

import errno
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
import uuid

import numpy as np
import pytest
import torch
from conftest import ROOT
from torch.utils.data import DataLoader

from hf_unlearn.losses import prediction_mask
from hf_unlearn.stored import writer as store_writer
from hf_unlearn.stored.build import build
from hf_unlearn.stored.store import Rows, Store, required_bytes
from hf_unlearn.stored.writer import DiskFullError, Writer, remove_abandoned


LENGTHS = [3, 0, 5, 1, 4]
BITS = {
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}


def random_rows(lengths, shape=(), dtype=torch.float32, seed=0):
    """Rows of random bits: NaNs with payloads, infinities, denormals and signed zeros are among them."""
    generator = torch.Generator().manual_seed(seed)
    info = torch.iinfo(BITS[dtype])
    return [
        torch.randint(info.min, info.max, (n, *shape), generator=generator, dtype=BITS[dtype]).view(dtype)
        for n in lengths
    ]


def same_bits(left, right):
    return left.dtype == right.dtype and torch.equal(left.view(BITS[left.dtype]), right.view(BITS[right.dtype]))


def filler(arrays):
    """Writes `{name: list of rows}`, one row a call."""

    def fill(writer):
        for name, rows in arrays.items():
            for i, row in enumerate(rows):
                writer.write(name, [i], row)

    return fill


def make(folder, lengths=LENGTHS, seed=0):
    rows = random_rows(lengths, (2,), seed=seed)
    layout = {"forget.logps": Rows(lengths, (2,))}
    return build(folder, layout, filler({"forget.logps": rows})), rows


def names(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


# Values


@pytest.mark.parametrize("dtype", list(BITS))
@pytest.mark.parametrize("shape", [(), (7,), (2, 3)])
def test_values_come_back_bit_by_bit(tmp_path, dtype, shape):
    rows = random_rows(LENGTHS, shape, dtype)
    layout = {"retain.hidden": Rows(LENGTHS, shape, dtype)}

    def fill(writer):
        writer.write("retain.hidden", torch.tensor([4, 0]), torch.cat([rows[4], rows[0]]))
        writer.write("retain.hidden", np.array([1, 2, 3]), torch.cat(rows[1:4]))

    store = build(tmp_path / "key", layout, fill)
    for indices in ([2], [4, 0, 1, 0], torch.tensor([3, 1]), [1], []):
        flat, offsets = store.read("retain.hidden", indices)
        assert offsets.tolist() == np.cumsum([0, *(LENGTHS[i] for i in indices)]).tolist()
        assert flat.shape == (offsets[-1], *shape)
        for place, i in enumerate(indices):
            assert same_bits(flat[offsets[place] : offsets[place + 1]], rows[i])
    assert same_bits(store.array("retain.hidden"), torch.cat(rows))
    assert (tmp_path / "key/retain.hidden.bin").stat().st_size == sum(LENGTHS) * dtype.itemsize * int(np.prod(shape))


def test_rows_line_up_with_the_mask_of_a_padded_batch(tmp_path):
    labels = torch.tensor([[-100, 5, 6, 7, -100], [1, 2, -100, -100, -100], [-100, -100, 8, -100, 9]])
    hidden = torch.randn(3, 5, 4)
    mask = prediction_mask(labels)
    layout = {"retain.hidden": Rows(mask.sum(1).tolist(), (4,))}
    store = build(tmp_path / "key", layout, lambda writer: writer.write("retain.hidden", [0, 1, 2], hidden[mask]))
    order = torch.tensor([2, 0])
    assert torch.equal(store.read("retain.hidden", order)[0], hidden[order][mask[order]])


def test_arrays_of_other_lengths_and_single_tensors_share_a_store(tmp_path):
    head = torch.randn(11, 4).bfloat16()
    layout = {
        "forget.logps": Rows([2, 1]),
        "retain.hidden": Rows([3], (4,), torch.bfloat16),
        "head.weight": Rows([11], (4,), torch.bfloat16),
    }
    values = {
        "forget.logps": random_rows([2, 1]),
        "retain.hidden": random_rows([3], (4,), torch.bfloat16),
        "head.weight": [head],
    }
    store = build(tmp_path / "key", layout, filler(values), meta={"layer": 3})
    assert torch.equal(store.array("head.weight"), head)
    assert same_bits(store.read("forget.logps", [1, 0])[0], torch.cat(values["forget.logps"][::-1]))
    assert store.meta == {"layer": 3}
    assert store.layout["forget.logps"].lengths.tolist() == [2, 1]
    # Writing to what was read or mapped must not reach the disk.
    store.array("head.weight").zero_()
    store.read("forget.logps", [0])[0].zero_()
    assert torch.equal(Store(tmp_path / "key").array("head.weight"), head)


@pytest.mark.parametrize("indices", [[5], [-1], torch.tensor([0.0, 1.0]), [1.5]])
def test_an_index_that_names_no_row_is_an_error(tmp_path, indices):
    store, _ = make(tmp_path / "key")
    with pytest.raises(IndexError, match="integers from 0 to 4"):
        store.read("forget.logps", indices)


@pytest.mark.parametrize(
    "values", [torch.zeros(3, 2).double(), torch.zeros(3), torch.zeros(2, 2), torch.zeros(3, 3), torch.zeros(0, 2)]
)
def test_values_of_another_shape_or_dtype_are_refused(tmp_path, values):
    writer = Writer.create(tmp_path / "key", {"forget.logps": Rows(LENGTHS, (2,))}, {})
    with pytest.raises(ValueError, match=r"must be \(3, 2\) of torch.float32"):
        writer.write("forget.logps", [0], values)
    writer.abort()
    assert names(tmp_path) == []


def test_a_store_serves_pickles_and_forked_workers(tmp_path):
    store, rows = make(tmp_path / "key")
    assert same_bits(pickle.loads(pickle.dumps(store)).read("forget.logps", [2])[0], rows[2])

    class Reader(torch.utils.data.Dataset):
        def __len__(self):
            return len(LENGTHS)

        def __getitem__(self, i):
            return store.read("forget.logps", [i])[0].view(torch.int32)

    loader = DataLoader(Reader(), batch_size=None, num_workers=2, multiprocessing_context="fork")
    for i, row in enumerate(loader):
        assert torch.equal(row, rows[i].view(torch.int32))


def test_short_writes_are_continued(tmp_path, monkeypatch):
    whole = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, position: whole(file, bytes(data[:7]), position))
    store, rows = make(tmp_path / "key")
    assert same_bits(store.array("forget.logps"), torch.cat(rows))


# Whole or nothing


def test_a_second_build_reads_what_the_first_wrote(tmp_path):
    _, rows = make(tmp_path / "key")

    def fill(writer):
        raise AssertionError("the values were computed again")

    store = build(tmp_path / "key", {"forget.logps": Rows(LENGTHS, (2,))}, fill)
    assert same_bits(store.array("forget.logps"), torch.cat(rows))
    assert names(tmp_path) == ["key"]


def test_a_forgotten_row_is_an_error_and_leaves_nothing(tmp_path):
    layout = {"forget.logps": Rows([2, 0, 1])}
    with pytest.raises(RuntimeError, match=r"forget.logps: 1 rows were not written, first \[2\]"):
        build(tmp_path / "key", layout, lambda writer: writer.write("forget.logps", [0], torch.zeros(2)))
    assert names(tmp_path) == []


def test_an_error_while_filling_leaves_nothing(tmp_path):
    def fill(writer):
        writer.write("forget.logps", [0], torch.zeros(2))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "key", {"forget.logps": Rows([2])}, fill)
    assert names(tmp_path) == []


def _truncate(folder):
    os.truncate(folder / "forget.logps.bin", 8)


def _lengthen(folder):
    os.truncate(folder / "forget.logps.bin", 10_000)


def _lose_lengths(folder):
    (folder / "forget.logps.lengths").unlink()


def _lose_manifest(folder):
    (folder / "manifest.json").unlink()


def _half_manifest(folder):
    os.truncate(folder / "manifest.json", 40)


def _other_format(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "format": 0}))


def _empty_folder(folder):
    shutil.rmtree(folder)
    folder.mkdir()


@pytest.mark.parametrize(
    "damage", [_truncate, _lengthen, _lose_lengths, _lose_manifest, _half_manifest, _other_format, _empty_folder]
)
def test_a_damaged_store_is_never_used_and_made_again(tmp_path, damage, caplog):
    make(tmp_path / "key", seed=1)
    damage(tmp_path / "key")
    with pytest.raises(ValueError, match="holds no usable store"):
        Store(tmp_path / "key")
    assert Store.find(tmp_path / "key") is None
    assert "It is made again" in caplog.text
    store, rows = make(tmp_path / "key", seed=2)
    assert same_bits(store.array("forget.logps"), torch.cat(rows))
    assert names(tmp_path) == ["key"]


def test_no_store_is_no_warning(tmp_path, caplog):
    assert Store.find(tmp_path / "key") is None
    assert caplog.text == ""


# Disk space


def test_required_bytes_are_those_on_disk(tmp_path):
    layout = {"forget.logps": Rows([100] * 30), "retain.hidden": Rows([50] * 20, (64,), torch.bfloat16)}
    values = {name: random_rows(rows.lengths, rows.shape, rows.dtype) for name, rows in layout.items()}
    build(tmp_path / "key", layout, filler(values))
    used = sum(path.stat().st_blocks * 512 for path in [tmp_path / "key", *(tmp_path / "key").iterdir()])
    assert 4 * 3000 + 2 * 64 * 1000 + 8 * 50 < used <= required_bytes(layout) <= used + 16 * 1024


def test_what_does_not_fit_is_told_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(2**40, 2**40, 2**30))
    layout = {"retain.hidden": Rows([2**20], (4096,), torch.bfloat16)}
    with pytest.raises(DiskFullError) as error:
        build(tmp_path / "cache/key", layout, None)
    message = str(error.value)
    assert "8.000 GiB are needed" in message
    assert "1.000 GiB are free" in message
    assert str(tmp_path / "cache") in message
    assert "`reference_cache_dir`" in message
    assert "reference='live'" in message
    assert error.value.errno == errno.ENOSPC
    assert names(tmp_path / "cache") == []


@pytest.mark.parametrize("call", ["pwrite", "posix_fallocate", "fsync"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_or_quota_on_the_way_is_one_clear_error(tmp_path, monkeypatch, call, number):
    def full(*args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(DiskFullError, match="are needed and .* are free") as error:
        make(tmp_path / "key")
    assert os.strerror(number) in str(error.value)
    assert isinstance(pickle.loads(pickle.dumps(error.value)), DiskFullError)
    assert names(tmp_path) == []


def test_other_errors_of_the_disk_stay_what_they_are(tmp_path, monkeypatch):
    def broken(*args):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pwrite", broken)
    with pytest.raises(OSError, match="Input/output error") as error:
        make(tmp_path / "key")
    assert not isinstance(error.value, DiskFullError)
    assert names(tmp_path) == []


def _cannot_allocate(*args):
    raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))


def test_a_disk_that_cannot_allocate_ahead_works_too(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "posix_fallocate", _cannot_allocate)
    store, rows = make(tmp_path / "key")
    assert same_bits(store.array("forget.logps"), torch.cat(rows))


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if shutil.which("mount") is None:
        pytest.skip("there is no `mount`")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], check=False, capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"mounting a small disk is not permitted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("stage", ["asked", "allocated", "written"])
def test_a_small_disk(small_disk, monkeypatch, stage):
    if stage != "asked":
        # As if another process took the space after it was asked for.
        monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(2**40, 0, 2**40))
    if stage == "written":
        monkeypatch.setattr(os, "posix_fallocate", _cannot_allocate)
    lengths, written = [1024] * 300, []

    def fill(writer):
        for i in range(len(lengths)):
            writer.write("retain.hidden", [i], torch.ones(1024))
            written.append(i)

    with pytest.raises(DiskFullError, match="are needed"):
        build(small_disk / "key", {"retain.hidden": Rows(lengths)}, fill)
    assert (100 < len(written) < 300) if stage == "written" else not written
    assert names(small_disk) == []
    monkeypatch.undo()
    # The space is free again, and what fits is written.
    store = build(
        small_disk / "key",
        {"retain.hidden": Rows([200_000])},
        lambda writer: writer.write("retain.hidden", [0], torch.ones(200_000)),
    )
    assert store.array("retain.hidden").sum() == 200_000


# Several builders


def test_the_first_of_two_builders_wins_and_the_other_uses_its_store(tmp_path):
    layout = {"forget.logps": Rows([2])}
    first, second = (Writer.create(tmp_path / "key", layout, {}) for _ in range(2))
    for value, writer in ((1.0, first), (2.0, second)):
        writer.write("forget.logps", [0], torch.full((2,), value))
        writer.close()
    first.commit()
    opened = Store(tmp_path / "key")
    second.commit()
    assert names(tmp_path) == ["key"]
    assert (
        opened.array("forget.logps").tolist() == Store(tmp_path / "key").array("forget.logps").tolist() == [1.0, 1.0]
    )


def test_a_pickled_writer_writes_into_the_same_store(tmp_path):
    layout = {"forget.logps": Rows([2, 1])}
    writer = Writer.create(tmp_path / "key", layout, {"a": 1})
    other = pickle.loads(pickle.dumps(writer))
    writer.write("forget.logps", [0], torch.tensor([1.0, 2.0]))
    other.write("forget.logps", [1], torch.tensor([3.0]))
    other.close()
    writer.close()
    writer.commit()
    assert Store(tmp_path / "key").array("forget.logps").tolist() == [1.0, 2.0, 3.0]


def test_a_living_builder_keeps_its_folder(tmp_path):
    writer = Writer.create(tmp_path / "key", {"forget.logps": Rows([2])}, {})
    for path in (writer.folder, *writer.folder.iterdir()):
        os.utime(path, (0, 0))
    remove_abandoned(tmp_path)
    writer.write("forget.logps", [0], torch.zeros(2))
    writer.close()
    writer.commit()
    assert names(tmp_path) == ["key"]


def test_a_builder_of_another_machine_is_judged_by_its_age(tmp_path):
    young, old, unrelated = (tmp_path / name for name in ("a.1.host.unfinished", "a.2.host.unfinished", "mine"))
    for folder in (young, old, unrelated):
        folder.mkdir()
        (folder / "file").touch()
    long_ago = time.time() - store_writer.ABANDONED_AFTER_SECONDS - 10
    for path in (young, old, old / "file", unrelated, unrelated / "file"):
        os.utime(path, (long_ago, long_ago))
    remove_abandoned(tmp_path)
    assert names(tmp_path) == ["a.1.host.unfinished", "mine"]


def test_a_kill_at_any_moment_does_no_harm(tmp_path):
    calls = ("mkdir", "posix_fallocate", "pwrite", "fsync", "rename", "truncate", "close")
    for moment in range(1000):
        root = tmp_path / str(moment)
        child = os.fork()
        if child == 0:
            left = moment

            def deadly(call):
                def counted(*args, **kwargs):
                    nonlocal left
                    if left == 0:
                        os.kill(os.getpid(), signal.SIGKILL)
                    left -= 1
                    return call(*args, **kwargs)

                return counted

            for name in calls:
                setattr(os, name, deadly(getattr(os, name)))
            make(root / "key", seed=1)
            os._exit(0)
        killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
        found = Store.find(root / "key")
        expected = torch.cat(random_rows(LENGTHS, (2,), seed=1))
        assert found is None or same_bits(found.array("forget.logps"), expected)
        assert found is not None or killed
        store, _ = make(root / "key", seed=1)
        assert same_bits(store.array("forget.logps"), expected)
        if found is None:
            assert names(root) == ["key"]
        if not killed:
            break
    assert moment > 20


SCRIPT = """
import sys, time, torch
from pathlib import Path
from hf_unlearn.stored.build import build
from hf_unlearn.stored.store import Rows

folder, pause, go = Path(sys.argv[1]), float(sys.argv[2]), Path(sys.argv[3])
layout = {"forget.logps": Rows([3] * 8), "retain.hidden": Rows([2] * 8, (4,), torch.bfloat16)}

def fill(writer):
    go.touch()
    for i in range(8):
        writer.write("forget.logps", [i], torch.full((3,), i + 0.5))
        writer.write("retain.hidden", [i], torch.full((2, 4), i + 0.25).bfloat16())
        print("row", i, flush=True)
        time.sleep(pause)

store = build(folder, layout, fill)
assert store.array("forget.logps").tolist() == [i + 0.5 for i in range(8) for _ in range(3)]
assert store.array("retain.hidden")[:, 0].tolist() == [i + 0.25 for i in range(8) for _ in range(2)]
print("right", flush=True)
"""


def start(script, *arguments, **environment):
    repository = ROOT
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1", **environment},
    )


def finish(process):
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    return out


def wait_for(process, line):
    for found in process.stdout:
        if found.strip() == line:
            return
    raise AssertionError(f"{line!r} never came: {process.stderr.read()}")


def test_kill_9_while_writing_then_again(tmp_path):
    cache = tmp_path / "cache"
    # Four builders of the same store: one is killed, one is alive all the time, two run at the same time after that.
    killed, living = start(SCRIPT, cache / "key", 60, tmp_path / "a"), start(SCRIPT, cache / "key", 60, tmp_path / "b")
    try:
        for process in (killed, living):
            wait_for(process, "row 0")
        assert len(names(cache)) == 2
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert len(names(cache)) == 2
        assert Store.find(cache / "key") is None
        again = [start(SCRIPT, cache / "key", 0.05, tmp_path / name) for name in "cd"]
        assert all("right" in finish(process) for process in again)
        # The dead one's folder is gone, the living one's is not.
        left = names(cache)
        assert len(left) == 2
        assert left[0] == "key"
        assert living.poll() is None
        assert (cache / left[1] / "forget.logps.bin").exists()
    finally:
        for process in (killed, living):
            process.kill()
            process.communicate()


RANKS = """
import os, shutil, sys, torch
import torch.distributed as dist
from pathlib import Path
from hf_unlearn.stored.build import build
from hf_unlearn.stored.store import Rows
from hf_unlearn.stored.writer import DiskFullError

rank, folder = int(os.environ["RANK"]), Path(sys.argv[1])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
layout = {"retain.hidden": Rows(list(range(9)), (3,))}

def fill(writer):
    # Row 8 is written by both, as samplers do that give every rank as many rows.
    for i in [*range(rank, 9, 2), 8]:
        writer.write("retain.hidden", [i], torch.full((i, 3), float(i)))

for _ in range(2):
    store = build(folder, layout, fill)
    fill = None
assert store.array("retain.hidden")[:, 2].tolist() == [float(i) for i in range(9) for _ in range(i)]

if rank == 0:
    shutil.disk_usage = lambda folder: shutil._ntuple_diskusage(1, 1, 0)
try:
    build(folder.with_name("other"), layout, fill)
except DiskFullError as error:
    print("full", flush=True)
dist.barrier()
dist.destroy_process_group()
"""


def test_two_processes_fill_one_store_and_fail_together(tmp_path):
    ranks = [
        start(RANKS, tmp_path / "cache/key", tmp_path / "rendezvous", RANK=str(rank), GLOO_SOCKET_IFNAME="lo")
        for rank in range(2)
    ]
    assert [finish(rank) for rank in ranks] == ["full\n"] * 2
    assert names(tmp_path / "cache") == ["key"]


# Where


def test_names_that_are_no_file_names_are_refused(tmp_path):
    with pytest.raises(ValueError, match="named like files"):
        build(tmp_path / "key", {f"../{uuid.uuid4()}": Rows([1])}, None)
