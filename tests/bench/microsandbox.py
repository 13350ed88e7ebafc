"""Measures pulls into the store and into Microsandbox at once beside each of the two alone, and writes a table.

    python tests/bench/microsandbox.py [--rounds 5] [--images debian python node] [--msb PROGRAM] [--out DIR]

Everything is cold: an empty store and an empty home of Microsandbox for each run, on the file system of the rig, from
its registry on the loopback. "Goal" is 1.3 times our pull or 1.1 times the slower of the two alone, whichever is
larger. CPU seconds are of all processes: where both parts keep all cores busy, no order of the work takes less than
their sum by the number of cores.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from pathlib import Path
from statistics import median

from bench import IMAGES, MSB, REGISTRY
from measure import RIG, Run, measure, program, spread, table, write

WORK = RIG / "store" / "bench-microsandbox"
OURS, THEIRS, BOTH = "msb-pull", "msb pull", "pull --to microsandbox"
LATER, SAVED = "pull, then export --to", "pull, then save and load"


def commands(image: str, msb: str) -> dict[str, str]:
    """What sh runs of each."""
    name = f"{REGISTRY}/rig/{IMAGES[image]}"
    ours, home = shlex.join(program()), f"-q --home {WORK}/home"
    to, pull = f"--to microsandbox --msb {msb}", f"{ours} pull {home} {name}"
    environment = f"export MSB_HOME={WORK}/msb TMPDIR={WORK}/tmp; "
    return {
        OURS: f"{environment}exec {pull}",
        THEIRS: f"{environment}exec {msb} pull -q --insecure {name}",
        BOTH: f"{environment}exec {pull} {to}",
        LATER: f"{environment}{pull} && exec {ours} export {home} {name} {to}",
        SAVED: f"{environment}{pull} && {ours} save {home} {name} -o - | {msb} load -q",
    }


def clear() -> None:
    """As before the first pull."""
    subprocess.run(["rm", "-rf", str(WORK)], check=True)
    (WORK / "tmp").mkdir(parents=True)


def render(runs: list[Run]) -> str:
    """One table for each image; ratios are taken within a round."""
    texts = []
    for image in dict.fromkeys(run.what for run in runs):
        own = [run for run in runs if run.what == image and run.status == 0]
        seconds = {(run.peer, run.round): run.seconds for run in own}
        goals = {
            number: max(1.3 * ours, 1.1 * max(ours, seconds.get((THEIRS, number), 0)))
            for (peer, number), ours in seconds.items()
            if peer == OURS
        }
        rows = []
        for peer in dict.fromkeys(run.peer for run in own):
            good = [run for run in own if run.peer == peer]
            ratios = [run.seconds / goals[run.round] for run in good if run.round in goals]
            rows.append([peer, spread([x.seconds for x in good]), spread(ratios), f"{median(x.cpu for x in good):.2f}"])
        noisy = sum(run.noisy for run in own)
        note = f"\n\n{noisy} of these runs were disturbed by other work on the machine." if noisy else ""
        texts.append(table([image, "seconds", "times the goal", "CPU seconds"], rows) + note)
    return "\n\n".join(texts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", nargs="+", choices=IMAGES, default=["debian", "python", "node"])
    parser.add_argument("--msb", default=str(MSB))
    parser.add_argument("--patience", type=float, default=20, help="seconds to wait before a run for a quiet machine")
    parser.add_argument("--out", type=Path, default=RIG / "bench")
    options = parser.parse_args()
    runs = []
    for number in range(1, options.rounds + 1):
        for image in options.images:
            for peer, command in commands(image, shlex.quote(os.path.abspath(options.msb))).items():
                clear()
                log = RIG / "logs" / "bench.log"
                run = measure(image, peer, number, command, log=log, quiet=options.patience)
                runs.append(run)
                print(f"{image:8} {peer:26} {run.seconds:7.2f} s, {run.cpu:6.2f} s CPU", file=sys.stderr, flush=True)
    clear()
    write(options.out, "microsandbox", render(runs), runs, rounds=options.rounds)
    return 0 if all(run.status == 0 for run in runs) else 1


if __name__ == "__main__":
    sys.exit(main())
