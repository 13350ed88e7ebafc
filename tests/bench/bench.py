"""Measures msb-pull beside its peers on the images of the rig, and writes a table.

    python tests/bench/bench.py [--rounds 5] [--images debian python bigblob node] [--peers podman msb …] [--out DIR]

Every image is pulled cold (an empty store) and warm (everything there) by every peer, from the registry of the rig
on the loopback into one and the same journaled file system ($RIG/store). Rounds are interleaved: each peer once, then
the next round, so that a slow minute of the machine hits all of them. Wanted: root, the rig (RIG, its registry
running), and whichever of podman, skopeo, umoci and msb should take part. Figures are medians with minimum and
maximum; ratios are taken within a round.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from measure import RIG, Run, measure, program, spread, table, write

REGISTRY = "127.0.0.1:5005"
IMAGES = {"debian": "debian:bookworm", "python": "python:3.11", "bigblob": "bigblob:1", "node": "node:20"}
US = "msb-pull"
WORK = RIG / "store" / "bench"


@dataclass(frozen=True)
class Peer:
    """``command`` is run by sh with ``{folder}``, ``{image}`` and ``{streams}`` filled in."""

    needs: str
    command: str
    warm: bool = False  # it keeps a store, so that a second pull means something


OURS = f"exec {shlex.join(program())} pull -q --home {{folder}}/home {{image}}"
EACH = (
    r"printf '%s\n' {{streams}} | xargs -P2 -L1 "
    "sh -c 'mkdir -p {{folder}}/$0; curl -sf $1 | {unzip} | tar -xf - -C {{folder}}/$0'"
)
IGZIP = f"{shlex.quote(sys.executable)} -m isal.igzip -dc"
MSB = next(iter(RIG.glob("venv/lib/python3*/site-packages/microsandbox/_bundled/bin/msb")), Path("msb"))

PEERS = {
    US: Peer("sh", OURS, warm=True),
    f"{US}, one core": Peer("taskset", OURS.replace("exec ", "exec taskset -c 0 ")),
    "podman": Peer(
        "podman",
        "exec podman --root {folder}/pod --runroot {folder}/run --storage-driver overlay "
        "pull -q --tls-verify=false {image}",
        warm=True,
    ),
    "skopeo + umoci": Peer(
        "umoci",
        "skopeo copy -q --src-tls-verify=false docker://{image} oci:{folder}/oci:x && "
        "exec umoci unpack --image {folder}/oci:x {folder}/bundle",
    ),
    "msb": Peer(str(MSB), f"MSB_HOME={{folder}}/home exec {MSB} pull -q --insecure {{image}}", warm=True),
    "curl, gzip, tar": Peer("curl", EACH.format(unzip="gzip -dc")),
    "curl, igzip, tar": Peer("curl", EACH.format(unzip=IGZIP)),
}


def command_of(peer: Peer, image: str) -> str:
    name = IMAGES[image].partition(":")[0]
    layers = json.loads((RIG / "images.json").read_text())[image]["layers"]
    urls = [f"http://{REGISTRY}/v2/rig/{name}/blobs/{layer['gz']}" for layer in layers]
    streams = " ".join(f"'{number} {url}'" for number, url in enumerate(urls))
    return peer.command.format(folder=WORK, image=f"{REGISTRY}/rig/{IMAGES[image]}", streams=streams)


def remove_store() -> None:
    """Deletes what the last run wrote; podman may have left its storage mounted."""
    subprocess.run(["umount", "-q", "-l", str(WORK / "pod" / "overlay")], stderr=subprocess.DEVNULL, check=False)
    subprocess.run(["rm", "-rf", str(WORK)], check=True)
    WORK.mkdir(parents=True)


def run_once(state: str, image: str, name: str, number: int, patience: float) -> Run:
    log = RIG / "logs" / "bench.log"
    run = measure(f"{state} {image}", name, number, command_of(PEERS[name], image), log=log, quiet=patience)
    mark = "" if run.status == 0 else f" FAILED ({run.status})"
    mark += " (noisy)" if run.noisy else ""
    print(f"{run.what:14} {name:18} {run.seconds:7.2f} s, {run.cpu:6.2f} s CPU{mark}", file=sys.stderr, flush=True)
    return run


def rounds(images: list[str], peers: list[str], count: int, patience: float) -> list[Run]:
    runs = []
    for number in range(1, count + 1):
        for image in images:
            for name in peers:
                remove_store()
                runs.append(run_once("cold", image, name, number, patience))
                if PEERS[name].warm:
                    runs.append(run_once("warm", image, name, number, patience))
    remove_store()
    return runs


def render(runs: list[Run]) -> str:
    """One table for each image and state; "times" is how many times our time the peer takes, round by round."""
    texts = []
    for what in dict.fromkeys(run.what for run in runs):
        ours = {run.round: run.seconds for run in runs if run.what == what and run.peer == US and run.status == 0}
        rows = []
        for name in PEERS:
            own = [run for run in runs if run.what == what and run.peer == name]
            good = [run for run in own if run.status == 0]
            if own and not good:
                rows.append([name, "failed", "", "", "", ""])
            elif good:
                ratios = [run.seconds / ours[run.round] for run in good if run.round in ours]
                rows.append(
                    [name, spread([x.seconds for x in good]), spread(ratios) if ratios else "",
                     f"{median(x.cpu for x in good):.2f}", f"{max(x.largest_mib for x in good):.0f}",
                     f"{max(x.tree_mib for x in good):.0f}"]
                )  # fmt: skip
        noisy = sum(run.noisy for run in runs if run.what == what)
        note = f"\n\n{noisy} of these runs were disturbed by other work on the machine." if noisy else ""
        head = [what, "seconds", "times ours", "CPU seconds", "largest process MiB", "all processes MiB"]
        texts.append(table(head, rows) + note)
    return "\n\n".join(texts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", nargs="+", choices=IMAGES, default=list(IMAGES))
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS), help="msb-pull always takes part")
    parser.add_argument("--patience", type=float, default=20, help="seconds to wait before a run for a quiet machine")
    parser.add_argument("--out", type=Path, default=RIG / "bench")
    options = parser.parse_args()
    wanted = [name for name in PEERS if name == US or name in options.peers]
    peers = [name for name in wanted if shutil.which(PEERS[name].needs)]
    for name in wanted:
        if name not in peers:
            print(f"not installed, left out: {name}", file=sys.stderr)
    runs = rounds(options.images, peers, options.rounds, options.patience)
    write(options.out, "bench", render(runs), runs, rounds=options.rounds)
    return 0 if all(run.status == 0 for run in runs if run.peer == US) else 1


if __name__ == "__main__":
    sys.exit(main())
