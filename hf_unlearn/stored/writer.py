# SPDX-License-Identifier: Apache-2.0
"""Makes the stores of `store.py`: room first, then rows by many processes, then the name that says it is whole."""

import errno
import fcntl
import json
import logging
import os
import re
import shutil
import socket
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .store import FORMAT, MANIFEST, Layout, Store, describe, file_sizes, required_bytes


logger = logging.getLogger(__name__)

UNFINISHED = f".{re.sub('[^A-Za-z0-9-]', '-', socket.gethostname())}.unfinished"
# For builders whose lock cannot be asked after: on another machine, or on a disk without locks.
ABANDONED_AFTER_SECONDS = 24 * 3600


class DiskFullError(OSError):
    """A store does not fit on its disk: too little is free, or a quota is used up."""


class Writer:
    """Fills a store. Several processes may do so together, each for its own rows; [`build`] shows the order of calls.

    The first process calls [`~Writer.create`] and hands the pickled writer to the others. Files are written at given
    positions instead of through maps: what two machines write side by side stays apart on network disks, and a disk
    that fills up is an error instead of a bus error.
    """

    def __init__(self, folder: Path, target: Path, layout: Layout, meta: Mapping[str, Any]):
        self.folder, self.target, self.layout, self.meta = folder, target, layout, meta
        self._open_files: dict[str, int] = {}
        self._lock: int | None = None

    @classmethod
    def create(cls, target: str | os.PathLike, layout: Layout, meta: Mapping[str, Any]) -> "Writer":
        """Takes the disk space that a store needs, after removing what killed builders left.

        Raises:
            `DiskFullError`: if it does not fit. Nothing is left behind.
        """
        if bad := [name for name in layout if not re.fullmatch(r"[\w.-]+", name)]:
            raise ValueError(f"Arrays are named like files, with letters, digits, `_`, `-` and `.`; not {bad}.")
        target = Path(target).absolute()
        folder = target.with_name(f"{target.name}.{uuid.uuid4().hex[:8]}{UNFINISHED}")
        writer = cls(folder, target, layout, meta)
        try:
            with writer._clear_errors():
                target.parent.mkdir(parents=True, exist_ok=True)
                # Whoever clears up meanwhile must not see the folder before its lock is held.
                with _locked(target.parent):
                    remove_abandoned(target.parent)
                    if required_bytes(layout) > shutil.disk_usage(target.parent).free:
                        raise _disk_full("Too little disk space", target, layout)
                    folder.mkdir()
                    writer._hold_lock()
                for file, size in file_sizes(layout).items():
                    _allocate(folder / file, size)
                for name, rows in layout.items():
                    # -1 until the row is written; a row without items is never written.
                    pending = np.where(np.diff(rows.offsets) == 0, 0, -1)
                    writer._write_at(f"{name}.lengths", pending.astype(np.int64).tobytes(), 0)
        except BaseException:
            writer.abort()
            raise
        return writer

    def write(self, name: str, indices: Sequence[int] | Tensor, values: Tensor) -> None:
        """Writes rows.

        Args:
            name (`str`): which array.
            indices (`Sequence[int]` or integer `Tensor`): rows, in the order in which `values` holds them.
            values (`Tensor`): `[items, *shape]`, the rows one after the other, on any device.

        Raises:
            `ValueError`: if `values` differs from the layout in shape or dtype; nothing is converted.
            `DiskFullError`: if the disk fills up.
        """
        rows = self.layout[name]
        indices = rows.checked(indices)
        begins, lengths = rows.offsets[indices], np.diff(rows.offsets)[indices]
        shape = (int(lengths.sum()), *rows.shape)
        if tuple(values.shape) != shape or values.dtype != rows.dtype:
            raise ValueError(
                f"{name}, rows {indices.tolist()[:8]}: values must be {shape} of {rows.dtype}, "
                f"not {tuple(values.shape)} of {values.dtype}."
            )
        data, done = memoryview(raw_bytes(values)), 0
        with self._clear_errors():
            for index, begin, length in zip(indices.tolist(), begins.tolist(), lengths.tolist(), strict=True):
                size = length * rows.item_bytes
                self._write_at(f"{name}.bin", data[done : done + size], begin * rows.item_bytes)
                # A length other than -1 says that the row is there.
                self._write_at(f"{name}.lengths", np.int64(length).tobytes(), 8 * index)
                done += size

    def close(self) -> None:
        """Puts this process's rows on the disk. Every process does so before the first one commits."""
        with self._clear_errors():
            for file in self._open_files.values():
                os.fsync(file)
        self._close_files()

    def commit(self) -> None:
        """Gives the store its name, once every process has closed. Where another builder was faster, its store stays.

        Raises:
            `RuntimeError`: if rows are missing.
        """
        for name, rows in self.layout.items():
            missing = np.flatnonzero(np.fromfile(self.folder / f"{name}.lengths", np.int64) != np.diff(rows.offsets))
            if len(missing):
                raise RuntimeError(f"{name}: {len(missing)} rows were not written, first {missing[:8].tolist()}.")
        with self._clear_errors():
            manifest = {"format": FORMAT, "arrays": describe(self.layout), "files": file_sizes(self.layout)}
            self._write_at(MANIFEST, json.dumps({**manifest, "meta": self.meta}, indent=1).encode(), 0)
            self.close()
            _sync_folder(self.folder)
        if self.target.exists() and Store.find(self.target) is None:
            # Moved first: a folder that is half deleted must not carry the name.
            broken = self.folder.with_name(f"{self.target.name}.{uuid.uuid4().hex[:8]}{UNFINISHED}")
            with suppress(FileNotFoundError):
                self.target.rename(broken)
            shutil.rmtree(broken, ignore_errors=True)
        try:
            self.folder.rename(self.target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            logger.info("Another process has made %s meanwhile.", self.target)
            shutil.rmtree(self.folder)
        _sync_folder(self.target.parent)
        self._release_lock()

    def abort(self) -> None:
        """Removes what was written; on any process, at any time before the commit."""
        self._close_files()
        shutil.rmtree(self.folder, ignore_errors=True)
        self._release_lock()

    def _write_at(self, file: str, data: bytes | memoryview, position: int) -> None:
        if file not in self._open_files:
            self._open_files[file] = os.open(self.folder / file, os.O_WRONLY | os.O_CREAT, 0o666)
        data = memoryview(data)
        # One call moves 2 GiB at most.
        while count := len(data) and os.pwrite(self._open_files[file], data, position):
            data, position = data[count:], position + count

    @contextmanager
    def _clear_errors(self):
        try:
            yield
        except OSError as error:
            if isinstance(error, DiskFullError) or error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise _disk_full(error.strerror, self.target, self.layout) from error

    def _close_files(self) -> None:
        while self._open_files:
            os.close(self._open_files.popitem()[1])

    def _hold_lock(self) -> None:
        # The kernel drops the lock with the process, however that ends.
        self._lock = os.open(self.folder, os.O_RDONLY)
        with suppress(OSError):
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _release_lock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __reduce__(self):
        return type(self), (self.folder, self.target, self.layout, self.meta)


def raw_bytes(values: Tensor) -> np.ndarray:
    """The bytes of a tensor, flat; no copy where it is contiguous and on the CPU."""
    return values.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()


@contextmanager
def _locked(folder: Path):
    file = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)


def remove_abandoned(root: Path) -> None:
    """Removes the unfinished stores of builders that are gone, never those of living ones."""
    for folder in root.glob("*.unfinished"):
        if _is_abandoned(folder):
            logger.info("Removing %s, left behind by a process that was killed.", folder)
            shutil.rmtree(folder, ignore_errors=True)


def _is_abandoned(folder: Path) -> bool:
    # The folder may go, or be another user's: then it is left alone.
    with suppress(OSError):
        if folder.name.endswith(UNFINISHED):
            file = os.open(folder, os.O_RDONLY)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                return False
            except OSError:
                logger.debug("%s lies on a disk without locks.", folder)
            finally:
                os.close(file)
        last_write = max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
        return time.time() - last_write > ABANDONED_AFTER_SECONDS
    return False


def _allocate(path: Path, size: int) -> None:
    # A sparse file would only find out while it is written that the disk is full.
    with open(path, "xb") as file:
        if size and hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                    raise
        file.truncate(size)


def _disk_full(reason: str, target: Path, layout: Layout) -> DiskFullError:
    needed, free = required_bytes(layout) / 2**30, shutil.disk_usage(target.parent).free / 2**30
    return DiskFullError(
        errno.ENOSPC,
        f"{reason}: {needed:,.3f} GiB are needed and {free:,.3f} GiB are free on the disk of {target.parent}. Make "
        "room there, set `reference_cache_dir` to a folder on a larger disk, or take reference='live' (a second model "
        "in memory, nothing on disk)",
    )


def _sync_folder(folder: Path) -> None:
    file = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
