"""Runs a command and measures it; shared by the benchmarks of this folder. Linux, standard library only."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

RIG = Path(os.environ.get("RIG", "~/.cache/msb-pull-rig")).expanduser()
REPOSITORY = Path(__file__).resolve().parents[2]
TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
MIB = 1 << 20


@dataclass
class Run:
    """One measured run: seconds, CPU seconds of the whole tree, peak memory in MiB."""

    what: str
    peer: str
    round: int
    seconds: float
    cpu: float
    largest_mib: float  # the largest single process
    tree_mib: float  # the sum over all processes at its highest; shared pages count once for each process
    other_cpu: float  # what everything else on the machine used meanwhile
    status: int
    facts: dict = field(default_factory=dict)

    @property
    def noisy(self) -> bool:
        return self.other_cpu > 0.15 + 0.25 * self.seconds


def program() -> list[str]:
    """How to start msb-pull: the script of this interpreter's environment, else the module of this checkout."""
    script = Path(sys.executable).parent / "msb-pull"
    return [str(script)] if script.exists() else [sys.executable, "-m", "msb_pull"]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "MSB_PULL_PROGRESS": "none"}


def machine() -> str:
    """One line that says what was measured on."""
    model = [x.partition(":")[2].strip() for x in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in x]
    cores = len(os.sched_getaffinity(0))
    kernel = ".".join(platform.release().split(".")[:2])
    return f"{cores} cores, {model[0] if model else platform.machine()}, Linux {kernel}"


def busy_seconds() -> float:
    """CPU seconds that all cores together have worked since the start."""
    ticks = [int(x) for x in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) / TICKS


def wait_until_quiet(limit: float = 20.0) -> None:
    """Waits until nothing else works, but not longer than ``limit`` seconds."""
    end = time.monotonic() + limit
    while time.monotonic() < end:
        before = busy_seconds()
        time.sleep(0.3)
        if busy_seconds() - before < 0.06:
            return


def tree_bytes(root: int) -> int:
    """Resident bytes of a process and all its descendants, from one look at /proc."""
    parents, resident = {}, {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                with open(f"/proc/{entry.name}/stat", "rb") as stat:
                    fields = stat.read().rpartition(b")")[2].split()
            except OSError:
                continue  # it has just ended
            parents[int(entry.name)], resident[int(entry.name)] = int(fields[1]), int(fields[21]) * PAGE
    total = 0
    for pid, size in resident.items():
        above = pid
        while above not in (0, root):
            above = parents.get(above, 0)
        total += size if above == root else 0
    return total


class MemoryWatch(threading.Thread):
    """Looks every 30 ms how much memory a tree of processes holds."""

    def __init__(self, root: int) -> None:
        super().__init__(daemon=True)
        self.root, self.peak, self.ended = root, 0, threading.Event()

    def run(self) -> None:
        while not self.ended.wait(0.03):
            self.peak = max(self.peak, tree_bytes(self.root))

    def stop(self) -> int:
        self.ended.set()
        self.join()
        return self.peak


def measure(what: str, peer: str, number: int, command: list[str] | str, *, log: Path, quiet: float = 20.0) -> Run:
    """Runs the command (text goes to sh) and waits for it; what it prints goes to ``log``."""
    os.sync()
    wait_until_quiet(quiet)
    arguments = ["sh", "-c", command] if isinstance(command, str) else command
    with open(log, "ab") as out:
        out.write(f"\n== {what} {peer} {number}: {command}\n".encode())
        out.flush()
        others, start = busy_seconds(), time.monotonic()
        process = subprocess.Popen(
            arguments, stdout=out, stderr=out, stdin=subprocess.DEVNULL, env=environment(), cwd="/"
        )
        watch = MemoryWatch(process.pid)
        watch.start()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - start
        process.returncode = os.waitstatus_to_exitcode(status)
    cpu = usage.ru_utime + usage.ru_stime
    return Run(
        what, peer, number, round(seconds, 3), round(cpu, 3), round(usage.ru_maxrss / 1024, 1),
        round(watch.stop() / MIB, 1), round(max(0.0, busy_seconds() - others - cpu), 2), process.returncode,
    )  # fmt: skip


def spread(values: list[float], digits: int = 2) -> str:
    """``median (min to max)``."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write(out: Path, name: str, text: str, runs: list[Run], **facts: object) -> None:
    """Writes ``name.md`` and ``name.json`` and prints the text."""
    out.mkdir(parents=True, exist_ok=True)
    head = f"Measured on {time.strftime('%Y-%m-%d', time.gmtime())}: {machine()}.\n\n"
    (out / f"{name}.md").write_text(head + text + "\n")
    document = {"machine": machine(), **facts, "runs": [asdict(run) | {"noisy": run.noisy} for run in runs]}
    (out / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
    print(head + text)
