"""Measures exports beside what they replace, and writes a table.

    python tests/bench/export.py [--rounds 5] [--images debian python node] [--out DIR]

Three things: a tar of an image from the store beside GNU tar over umoci's tree of it; an EROFS image from the store;
and a cold pull with the export of an EROFS image beside skopeo, umoci and mkfs.erofs. Rounds are interleaved, and
everything lies on one file system ($RIG/store). Wanted: root, the rig with its registry, skopeo, umoci, mkfs.erofs.
Figures are medians with minimum and maximum; ratios are taken within a round.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from pathlib import Path
from statistics import median

from measure import RIG, Run, measure, program, spread, table, write

REGISTRY = "127.0.0.1:5005"
IMAGES = {"debian": "debian:bookworm", "python": "python:3.11", "bigblob": "bigblob:1", "node": "node:20"}
US = "msb-pull"
WORK = RIG / "store" / "bench-export"
PULL = f"{shlex.join(program())} pull -q --home {{home}} {{image}}"
EXPORT = f"{shlex.join(program())} export -q --home {{home}} {{image}} --force -o {{out}}"
UNPACK = (
    "skopeo copy -q --src-tls-verify=false docker://{image} oci:{work}/oci:x && "
    "umoci unpack --image {work}/oci:x {work}/bundle"
)
# What is measured: who, and what sh runs.
TASKS = {
    "tar": {
        US: f"exec {EXPORT}.tar",
        "tar -c": "exec tar --xattrs --format=posix -cf {out}.peer.tar -C {tree}/rootfs .",
    },
    "erofs": {US: f"exec {EXPORT}.erofs"},
    "cold pull, erofs": {
        US: f"{PULL} && exec {EXPORT}.erofs".replace("{home}", "{work}/home"),
        "skopeo + umoci + mkfs.erofs": f"{UNPACK} && exec mkfs.erofs --quiet {{out}}.peer.erofs {{work}}/bundle/rootfs",
    },
}


def names_of(image: str) -> dict[str, str]:
    folder = WORK / image
    return {
        "image": f"{REGISTRY}/rig/{IMAGES[image]}", "home": f"{WORK}/home", "tree": f"{folder}/tree",
        "work": f"{folder}/work", "out": f"{folder}/out",
    }  # fmt: skip


def prepare(image: str) -> None:
    """A store and umoci's tree, to be read by all rounds."""
    names = names_of(image)
    (WORK / image / "work").mkdir(parents=True)
    command = f"{PULL} && {UNPACK} && mv {{work}}/bundle {{tree}}".format(**names)
    subprocess.run(["sh", "-c", command], check=True, stdout=subprocess.DEVNULL)


def rounds(images: list[str], count: int, patience: float) -> list[Run]:
    runs = []
    for number in range(1, count + 1):
        for image in images:
            names = names_of(image)
            for task, peers in TASKS.items():
                for peer, command in peers.items():
                    subprocess.run(["sh", "-c", f"rm -rf {names['work']} {names['out']}.*"], check=True)
                    Path(names["work"]).mkdir()
                    log = RIG / "logs" / "bench.log"
                    what = f"{task} {image}"
                    run = measure(what, peer, number, command.format(**names), log=log, quiet=patience)
                    state = "" if run.status == 0 else f" FAILED ({run.status})"
                    print(f"{run.what:24} {peer:28} {run.seconds:7.2f} s{state}", file=sys.stderr, flush=True)
                    runs.append(run)
    return runs


def render(runs: list[Run]) -> str:
    rows = []
    for what in dict.fromkeys(run.what for run in runs):
        ours = {run.round: run.seconds for run in runs if run.what == what and run.peer == US and run.status == 0}
        for peer in dict.fromkeys(run.peer for run in runs if run.what == what):
            good = [run for run in runs if (run.what, run.peer, run.status) == (what, peer, 0)]
            if not good:
                rows.append([what, peer, "failed", "", "", ""])
                continue
            ratios = [run.seconds / ours[run.round] for run in good if run.round in ours]
            rows.append(
                [what, peer, spread([run.seconds for run in good]), spread(ratios) if ratios else "",
                 f"{median(run.cpu for run in good):.2f}", f"{max(run.largest_mib for run in good):.0f}"]
            )  # fmt: skip
    noisy = sum(run.noisy for run in runs)
    note = f"\n\n{noisy} of {len(runs)} runs were disturbed by other work on the machine."
    return table(["what", "who", "seconds", "times ours", "CPU seconds", "largest process MiB"], rows) + note


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", nargs="+", choices=IMAGES, default=["debian", "python", "node"])
    parser.add_argument("--patience", type=float, default=20, help="seconds to wait before a run for a quiet machine")
    parser.add_argument("--out", type=Path, default=RIG / "bench")
    options = parser.parse_args()
    subprocess.run(["rm", "-rf", str(WORK)], check=True)
    try:
        for image in options.images:
            prepare(image)
        runs = rounds(options.images, options.rounds, options.patience)
    finally:
        subprocess.run(["rm", "-rf", str(WORK)], check=True)
    write(options.out, "export", render(runs), runs, rounds=options.rounds)
    return 0 if all(run.status == 0 for run in runs) else 1


if __name__ == "__main__":
    sys.exit(main())
