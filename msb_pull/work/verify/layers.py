"""What can be said of each layer of a store, worked out in processes of their own when there is much to look at."""

from __future__ import annotations

import contextlib
import enum
import os
import threading
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from msb_pull.ground import events
from msb_pull.ground.errors import Cancelled, LocalError, NoMoreTasks
from msb_pull.ground.pools import Pool
from msb_pull.ground.running import Cancel, Throttle, processors
from msb_pull.ground.sizes import counted
from msb_pull.ground.text import visible_bytes
from msb_pull.layer.proof.prover import Prover
from msb_pull.layer.proof.task import Damage, Findings, ProofTask
from msb_pull.store.paths import LayerState

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from msb_pull.ground.running import Flag, Job
    from msb_pull.layer.proof.task import Progress
    from msb_pull.store.index.stored import StoredLayer
    from msb_pull.store.store import Store

    Prove = Callable[[ProofTask, Progress], Findings]

# Below these (bytes of blobs, bytes of records) all is done before a process has started.
_SMALL_BLOBS = 16_000_000
_SMALL_RECORDS = 64_000

# What was expected and found of a layer of which nothing is left.
_GONE = {
    LayerState.ABSENT: ("a directory", "nothing"),
    LayerState.EMPTIED: ("its entries", "an empty directory"),
}


class Verdict(enum.StrEnum):
    """What can be said of a layer."""

    PROVEN = "proven"
    UNCHANGED = "unchanged"
    UNPROVABLE = "unprovable"
    UNREADABLE = "unreadable"
    DAMAGED = "damaged"


@dataclass(frozen=True, slots=True)
class LayerReport:
    """One layer: ``proven`` means that its stream was recreated and has the signed diff_id, ``unchanged`` that all
    that was compared agrees (quick), ``unprovable`` that only another program knows it, ``unreadable`` that this user
    may not look at all of it and the rest agrees. A ``suspect`` one does not agree with a layer below that is damaged:
    once that is repaired, it shows which of them is wrong."""

    digest: str
    verdict: Verdict
    damages: tuple[Damage, ...]
    remark: str
    bytes: int
    entries: int
    images: tuple[str, ...]
    suspect: bool = False


def run_checks(checks: Sequence[LayerCheck], jobs: int) -> list[LayerReport]:
    """The reports of all checks, in their order; the largest layers are looked at first, ``jobs`` at a time.

    Raises LocalError, Cancelled.
    """
    if sum(x.blob_bytes for x in checks) <= _SMALL_BLOBS and sum(x.record_bytes for x in checks) <= _SMALL_RECORDS:
        # Else the processes load it, and this one does not.
        from msb_pull.layer.proof.prove import prove

        return [check.run(prove) for check in checks]
    work = _Work(checks)
    count = max(1, min(jobs, len(checks)))
    with Pool(count, thread_name_prefix="verify") as pool:
        ended = [pool.submit(work.serve)]
        with contextlib.suppress(LocalError):
            # With fewer threads than were wanted it takes longer.
            ended += [pool.submit(work.serve) for _ in range(count - 1)]
    errors = [error for future in ended if (error := future.exception()) is not None]
    # The first real one has stopped the others.
    for error in sorted(errors, key=lambda error: isinstance(error, Cancelled)):
        raise error
    return [work.reports[check] for check in checks]


class _Work:
    """Checks for several threads, each with a process that lasts as long as the thread has work."""

    def __init__(self, checks: Sequence[LayerCheck]) -> None:
        self._waiting = deque(sorted(checks, key=lambda check: -check.effort))
        self._failed = Cancel()
        self._starting = threading.Lock()
        # Whether a process has been started: its thread works off all that waits.
        self._served = False
        self.reports: dict[LayerCheck, LayerReport] = {}

    def serve(self) -> None:
        """What each thread does."""
        prover: Prover | None = None
        try:
            # Before a check is taken, which nobody else would come to.
            prover = self._start() if self._waiting else None
            while prover is not None and not self._failed.is_set():
                try:
                    check = self._waiting.popleft()
                except IndexError:
                    return
                self.reports[check] = check.run(prover.prove, self._failed)
        except BaseException:
            self._failed.set()
            raise
        finally:
            if prover is not None:
                prover.close()

    def _start(self) -> Prover | None:
        """A process, None where there can be no more and another one does it all."""
        with self._starting:
            try:
                prover = Prover()
            except NoMoreTasks:
                if not self._served:
                    raise
                return None
            self._served = True
            return prover


@dataclass(eq=False, slots=True)
class LayerCheck:
    """The verification of one layer. ``stacks`` are the directories of the layers below it, nearest first, in each of
    its images; None where only another program's image has it, so that nothing may be known of it."""

    store: Store
    layer: StoredLayer
    images: tuple[str, ...]
    stacks: Sequence[Sequence[str]] | None
    quick: bool
    job: Job
    blob_bytes: int = field(init=False)
    record_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        self.blob_bytes = 0 if self.quick else self.layer.size
        self.record_bytes = _size(self.store.record_path(self.layer.key))

    @property
    def effort(self) -> int:
        """What grows with the time that this takes."""
        return self.record_bytes * 8 + self.blob_bytes

    def run(self, prove: Prove, *others: Flag) -> LayerReport:
        """Never raises for what is wrong with the layer; raises Cancelled (also once one of ``others`` is set),
        LocalError."""
        cancel, throttle = Cancel(self.job.cancel, *others), Throttle()

        def progress(done: int, total: int, entries: bool) -> None:
            cancel.check()
            if throttle.passes(last=done == total):
                unit = "entries" if entries else "bytes"
                self.job.tell(events.CheckProgress("", str(self.layer.key), done, total, unit))

        before = self._identity()
        report = self._look(prove, progress)
        if report.verdict in (Verdict.PROVEN, Verdict.UNCHANGED):
            return report
        # A pull or a repair may have been swapping the layer: what counts is what is there once that is done.
        with self.store.lock_layer(self.layer.digest, self._waits, cancel):
            return report if self._identity() == before else self._look(prove, progress)

    def _look(self, prove: Prove, progress: Progress) -> LayerReport:
        key, store = self.layer.key, self.store
        state = store.layer_state(key)
        if state in _GONE:
            return self._report(Verdict.DAMAGED, [Damage(b"", "missing", *_GONE[state])])
        if state is not LayerState.COMPLETE and self.stacks is None:
            what = "a symlink or a file" if state is LayerState.OCCUPIED else "written by another program"
            return self._report(Verdict.UNPROVABLE, [], f"no record: {what}")
        if state is LayerState.OCCUPIED:
            return self._report(Verdict.DAMAGED, [Damage(b"", "type", "a directory", "a symlink or a file")])
        if state is LayerState.FOREIGN:
            return self._report(Verdict.DAMAGED, [Damage(b"", "notes", "the notes of the layer", "nothing")])
        task = ProofTask(
            directory=os.fspath(store.layer_dir(key)),
            record=os.fspath(store.record_path(key)),
            notes=os.fspath(store.notes_path(key)),
            kept=os.fspath(store.kept_path(key)),
            diff_id=str(self.layer.diff_id),
            quick=self.quick,
            stacks=self.stacks or (),
            beside=processors() > 1,
        )
        try:
            return self._judged(prove(task, progress))
        except PermissionError as error:
            return self._report(Verdict.UNREADABLE, [], f"{error.filename}: {error.strerror}")

    def _judged(self, found: Findings) -> LayerReport:
        verdict, remarks = Verdict.UNCHANGED if self.quick else Verdict.PROVEN, []
        if found.denied:
            verdict = Verdict.UNREADABLE
            first = "/" + visible_bytes(found.denied[0])
            remarks.append(f"{counted(len(found.denied), 'path')} not readable by this user, the first is {first}")
        if found.writable_by_others:
            from shlex import quote

            count = counted(found.writable_by_others, "path")
            directory = self.store.layer_dir(self.layer.key)
            remarks.append(f"{count} writable by other users; `chmod -R go-w {quote(str(directory))}` prevents that")
        if found.damages:
            verdict = Verdict.DAMAGED
        return self._report(verdict, found.damages, "; ".join(remarks), found)

    def _report(
        self, verdict: Verdict, damages: list[Damage], remark: str = "", found: Findings | None = None
    ) -> LayerReport:
        return LayerReport(
            str(self.layer.key),
            verdict,
            tuple(damages),
            remark,
            found.bytes if found else 0,
            found.entries if found else 0,
            self.images,
        )

    def _identity(self) -> list[tuple[int, int] | None]:
        """Differs once the layer has been swapped."""
        key, store = self.layer.key, self.store
        return [_inode(path) for path in (store.layer_dir(key), store.record_path(key), store.notes_path(key))]

    def _waits(self, holder: str) -> None:
        self.job.tell(events.LayerWaiting("", str(self.layer.digest), holder))


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        facts = os.lstat(path)
    except OSError:
        return None
    return facts.st_ino, facts.st_ctime_ns


def _size(path: Path) -> int:
    try:
        return os.lstat(path).st_size
    except OSError:
        return 0
