# SPDX-License-Identifier: Apache-2.0
"""Runs as processes of their own: one after another, or several at once, and all of them stopped cleanly."""

import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import yaml

from ..files import write_text
from ..training.checkpoints import last_whole
from .expand import Run
from .progress import DONE, OPTIONS_FILE, privacy_done, privacy_folder, state_of


LOG = "log.txt"
GIVEN_FILE = "given.yaml"
TOLD_LINES = 12
# How a tracker knows of what a run forgets.
TARGET_TAG = "target="
STOPPED, FAILED, FINISHED, ELSEWHERE = "stopped", "failed", "finished", "elsewhere"
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def make_slots(jobs: int | None, gpus: list[str] | None) -> list[dict[str, str]]:
    """The environment of each process that may run at the same time.

    Args:
        jobs (`int`, *optional*): how many at once; by default one, or one a GPU.
        gpus (`list[str]`, *optional*): as CUDA numbers them; dealt out in turn.
    """
    count = jobs or len(gpus or [None])
    slots = [{} if gpus is None else {"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} for i in range(count)]
    if count > 1 and "OMP_NUM_THREADS" not in os.environ:
        # Each would take all cores, and they would wait for each other.
        slots = [{**slot, "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // count))} for slot in slots]
    return slots


class Worker:
    """Works through runs.

    Args:
        slots (`list[dict]`): of [`make_slots`].
        accelerate_config (`str`, *optional*): starts each run on several processes.
        say (`Callable[[str], None]`): is told what begins and ends.
    """

    def __init__(self, slots: list[dict[str, str]], accelerate_config: str | None, say: Callable[[str], None]):
        self.slots, self.accelerate_config, self.say = slots, accelerate_config, say
        self.outcomes: dict[str, str] = {}
        self.signals: list[int] = []
        self._children: dict[int, subprocess.Popen] = {}

    def work(self, runs: list[Run], titles: list[str] | None = None) -> dict[str, str]:
        """Does all runs that are not done; returns each one's outcome by name. Called in the main thread.

        Args:
            runs (`list[Run]`): in the order in which they begin.
            titles (`list[str]`, *optional*): what is said of them; their number and name by default.

        SIGINT and SIGTERM are passed on to the runs, which end their step and save; a second one ends them at once.
        """
        waiting: queue.SimpleQueue = queue.SimpleQueue()
        titles = titles or [f"[{number}/{len(runs)}] {run.name}" for number, run in enumerate(runs, start=1)]
        for titled in zip(titles, runs, strict=True):
            waiting.put(titled)
        threads = [threading.Thread(target=self._serve, args=(slot, waiting), daemon=True) for slot in self.slots]
        before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        try:
            for thread in threads:
                thread.start()
            self._watch(threads)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        return self.outcomes

    def _note(self, number, frame):
        self.signals.append(number)

    def _watch(self, threads: list[threading.Thread]) -> None:
        told: dict[int, int] = {}
        while any(thread.is_alive() for thread in threads):
            if self.signals:
                for pid, child in list(self._children.items()):
                    if told.get(pid, 0) < min(len(self.signals), 2):
                        told[pid] = min(len(self.signals), 2)
                        _end(child, at_once=len(self.signals) > 1)
            time.sleep(0.1)

    def _serve(self, slot: dict[str, str], waiting: queue.SimpleQueue) -> None:
        while not self.signals:
            try:
                title, run = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                self.outcomes[run.name] = self._do(title, run, slot)
            except (OSError, ValueError) as error:
                self.say(f"{title}: failed: {error}")
                self.outcomes[run.name] = FAILED

    def _do(self, title: str, run: Run, slot: dict[str, str]) -> str:
        run.folder.mkdir(parents=True, exist_ok=True)
        with _locked(run.folder) as lock:
            if lock is None:
                self.say(f"{title}: is being run by another process, and left to it.")
                return ELSEWHERE
            # Looked at again: another sweep of the same folder may have done it meanwhile.
            if state_of(run) == DONE:
                outcome = FINISHED
            else:
                outcome = self._step(title, run, _run_command(run, self.accelerate_config), slot, lock)
            if outcome == FINISHED and not privacy_done(run):
                outcome = self._step(f"{title}, privacy", run, _privacy_command(run), slot, lock)
            return outcome

    def _step(self, title: str, run: Run, command: list[str], slot: dict[str, str], lock: int) -> str:
        if self.signals:
            return STOPPED
        log, start = run.folder / LOG, time.perf_counter()
        self.say(f"{title}: {'goes on' if '--resume_from_checkpoint' in command else 'begins'} (log: {log})")
        with log.open("a", encoding="utf-8") as file:
            file.write(f"\n=== {datetime.now().isoformat(timespec='seconds')} {' '.join(command)}\n")
            file.flush()
            # A session of its own: Ctrl-C is passed on as SIGTERM, upon which a run saves. The lock stays taken for as
            # long as the run lives, whatever becomes of this process.
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **_tracker(run), **slot},
                start_new_session=True,
                pass_fds=(lock,),
            )
            self._children[child.pid] = child
            status = child.wait()
            del self._children[child.pid]
        took = f"{time.perf_counter() - start:.0f} s"
        if status == 0:
            self.say(f"{title}: done in {took}")
            return FINISHED
        if self.signals:
            self.say(f"{title}: stopped after {took}")
            return STOPPED
        self.say(f"{title}: failed with status {status} after {took}. Its log ends:\n{last_lines(log)}")
        return FAILED


def last_lines(log: Path, count: int = TOLD_LINES) -> str:
    """The end of a log, indented, without progress bars that were drawn over."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 20_000))
        text = file.read().decode(errors="replace")
    lines = [line.rsplit("\r", 1)[-1].rstrip() for line in text.split("\n")]
    return "\n".join(f"    {line}" for line in [line for line in lines if line][-count:])


def _end(child: subprocess.Popen, at_once: bool) -> None:
    try:
        if at_once:
            os.killpg(child.pid, signal.SIGKILL)
        else:
            # To the first process alone: launchers pass it on.
            child.send_signal(signal.SIGTERM)
    except ProcessLookupError:
        return


def _command(*words: str) -> list[str]:
    return [sys.executable, "-m", "hf_unlearn.cli.main", *words]


def _run_command(run: Run, accelerate_config: str | None) -> list[str]:
    given = run.folder / GIVEN_FILE
    write_text(given, yaml.safe_dump(run.content, sort_keys=False, allow_unicode=True))
    # What an earlier state of the run was asked is not this one's.
    shutil.rmtree(privacy_folder(run.folder), ignore_errors=True)
    goes_on = last_whole(run.folder) is not None
    how = ["--resume_from_checkpoint", "last"] if goes_on else ["--overwrite_output", "true"]
    launched = [] if accelerate_config is None else ["--accelerate_config", accelerate_config]
    return _command("run", str(given), *how, *launched)


def _privacy_command(run: Run) -> list[str]:
    folder = privacy_folder(run.folder)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    options = folder / OPTIONS_FILE
    write_text(options, yaml.safe_dump(run.privacy, sort_keys=False, allow_unicode=True))
    return _command("audit", "privacy", "--config", str(options))


def _tracker(run: Run) -> dict[str, str]:
    """Trackers group runs by these; what the user set stays."""
    tags = [*run.tags, *([] if run.target is None else [f"{TARGET_TAG}{run.target}"])]
    wanted = {"WANDB_RUN_GROUP": run.label, "WANDB_TAGS": ",".join(tags)}
    return {name: value for name, value in wanted.items() if value and name not in os.environ}


@contextmanager
def _locked(folder: Path) -> Iterator[int | None]:
    """A lock on a run for as long as this process or one that inherits it lives; `None` if another has it."""
    import fcntl

    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield descriptor
    finally:
        os.close(descriptor)
