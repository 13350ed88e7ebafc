"""Runs every fuzz target for a bounded time, and says what was executed and found.

    python -m tests.fuzz.run [SECONDS] [TARGET …]      SECONDS of each target (60 unless told)
    python -m tests.fuzz.run --merge [TARGET …]        shrinks the corpus to what reaches something new

Needs `pip install -e ".[fuzz]"`. What was found lies in the folder that is named at the end; each of it becomes a named
test, and its cause is mended. New inputs stay outside the repository until they are merged.
"""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.fuzz.seeds import seeds
from tests.fuzz.targets import DEFAULT_LENGTH, LENGTHS, TARGETS

CORPUS = Path(__file__).resolve().parent / "corpus"
_MEMORY = 700  # MiB of a target's process, nearly all of it the fuzzer's own
_SLOW = 10  # seconds that one input may take


def main() -> int:
    arguments = argparse.ArgumentParser(description="Runs the fuzz targets.")
    arguments.add_argument("words", nargs="*", metavar="SECONDS|TARGET")
    arguments.add_argument("--merge", action="store_true")
    arguments.add_argument("--work", type=Path, help="where new inputs are kept from run to run")
    options = arguments.parse_intermixed_args()
    seconds = next((int(word) for word in options.words if word.isdecimal()), 60)
    chosen = [word for word in options.words if not word.isdecimal()] or list(TARGETS)
    if unknown := set(chosen) - set(TARGETS):
        arguments.error(f"no target {', '.join(sorted(unknown))}; there are {', '.join(TARGETS)}")
    work = options.work or Path(tempfile.mkdtemp(prefix="msb-pull-fuzz-"))
    failed = 0
    for target in chosen:
        for folder in ("new", "found"):
            (work / target / folder).mkdir(parents=True, exist_ok=True)
        if options.merge:
            merge(target, work / target)
        else:
            failed += fuzz(target, work / target, seconds)
    print(f"inputs: {work}")
    return 1 if failed else 0


def fuzz(target: str, work: Path, seconds: int) -> bool:
    """One line on one target; True if something was found."""
    for number, seed in enumerate(seeds(target)):
        (work / "new" / f"seed-{number}").write_bytes(seed)
    before = set((work / "found").iterdir())
    folders = [str(folder) for folder in (work / "new", CORPUS / target) if folder.is_dir()]
    run = start(target, work, *folders, f"-max_total_time={seconds}", f"-artifact_prefix={work / 'found'}/")
    (work / "log").write_text(run.stdout, errors="replace")
    found = sorted(set((work / "found").iterdir()) - before)
    executed = re.search(r"number_of_executed_units: *(\d+)", run.stdout)
    covered = re.findall(r"cov: (\d+)", run.stdout)
    count = f"{int(executed[1]):,}" if executed else "?"
    print(f"{target:12} {count:>12} executions, cov {covered[-1] if covered else '?'}, {len(found)} found", flush=True)
    for path in found:
        print(f"  {path}")
    if run.returncode and not found:
        print(run.stdout[-2000:])
    return bool(found or run.returncode)


def merge(target: str, work: Path) -> None:
    """Makes the corpus anew from itself, the seeds and what was kept."""
    for number, seed in enumerate(seeds(target)):
        (work / "new" / f"seed-{number}").write_bytes(seed)
    small = work / "merged"
    shutil.rmtree(small, ignore_errors=True)
    small.mkdir()
    corpus = CORPUS / target
    corpus.mkdir(parents=True, exist_ok=True)
    run = start(target, work, "-set_cover_merge=1", str(small), str(corpus), str(work / "new"))
    if run.returncode:
        raise SystemExit(run.stdout[-2000:])
    shutil.rmtree(corpus)
    shutil.copytree(small, corpus)
    sizes = [path.stat().st_size for path in corpus.iterdir()]
    print(f"{target:12} {len(sizes)} inputs, {sum(sizes):,} bytes", flush=True)


def start(target: str, work: Path, *words: str) -> subprocess.CompletedProcess[str]:
    limits = [f"-rss_limit_mb={_MEMORY}", f"-timeout={_SLOW}", f"-max_len={LENGTHS.get(target, DEFAULT_LENGTH)}"]
    program = work / "again"
    again = [sys.executable, "-m", "tests.fuzz.one", target, str(program)]
    program.write_text(f'#!/bin/sh\nexec {shlex.join(again)} "$@"\n')
    program.chmod(0o700)
    command = [*again, *limits, "-print_final_stats=1", *words]
    return subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False
    )


if __name__ == "__main__":
    sys.exit(main())
