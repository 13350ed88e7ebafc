"""Measures cold pulls over a slow link, beside the peers and beside the link's own speed.

    python tests/bench/link.py [--rate 100] [--rounds 3] [--image debian] [--out DIR]

A network namespace is joined to this machine by a pair of virtual interfaces; what flows into it is shaped by tc to
RATE Mbit/s (a token bucket of 128 kB), and the puller runs inside. A second docker-registry serves the rig's storage
on the other end. "times the link" is seconds divided by (compressed bytes / rate); curl to /dev/null shows how
much of that the protocol itself takes. "after start-up" leaves out the time of a dry run: the interpreter, the
program's modules, and the two small answers that say what to fetch. Ends with status 1 when msb-pull, start-up
included, takes more than --most times the link. Wanted: root, iproute2, docker-registry, the rig.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from bench import IMAGES, MSB, WORK, remove_store
from measure import RIG, environment, measure, program, spread, table, wait_until_quiet, write

SPACE, OUTSIDE, INSIDE = "msb-pull-bench", "mpbench0", "mpbench1"
HOST, GUEST = "10.213.77.1", "10.213.77.2"
REGISTRY = f"{HOST}:5077"


def ip(*arguments: str, check: bool = True) -> None:
    subprocess.run(["ip", *arguments], check=check, stderr=None if check else subprocess.DEVNULL)


@contextmanager
def slow_link(mbit: int):
    """A namespace that receives at most ``mbit`` Mbit/s; large frames keep the share of headers below 1 %."""
    ip("netns", "del", SPACE, check=False)
    ip("link", "del", OUTSIDE, check=False)
    try:
        ip("netns", "add", SPACE)
        ip("link", "add", OUTSIDE, "mtu", "9000", "type", "veth", "peer", "name", INSIDE, "mtu", "9000")
        ip("link", "set", INSIDE, "netns", SPACE)
        ip("addr", "add", f"{HOST}/30", "dev", OUTSIDE)
        ip("link", "set", OUTSIDE, "up")
        ip("-n", SPACE, "addr", "add", f"{GUEST}/30", "dev", INSIDE)
        ip("-n", SPACE, "link", "set", INSIDE, "up")
        ip("-n", SPACE, "link", "set", "lo", "up")
        shape = ["root", "tbf", "rate", f"{mbit}mbit", "burst", "128kb", "latency", "200ms"]
        subprocess.run(["tc", "qdisc", "add", "dev", OUTSIDE, *shape], check=True)
        yield
    finally:
        ip("link", "del", OUTSIDE, check=False)
        ip("netns", "del", SPACE, check=False)


@contextmanager
def registry(folder: Path):
    """A docker-registry on the outer end of the link, over the storage of the rig."""
    settings = {
        "version": "0.1",
        "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(RIG / "registry")}},
        "http": {"addr": REGISTRY},
    }
    (folder / "link-registry.yml").write_text(json.dumps(settings))  # JSON is YAML
    with open(folder / "link-registry.log", "ab") as log:
        command = ["docker-registry", "serve", str(folder / "link-registry.yml")]
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        for _ in range(100):
            try:
                urllib.request.urlopen(f"http://{REGISTRY}/v2/", timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        yield
    finally:
        server.terminate()
        server.wait()


def start_up(image: str) -> list[float]:
    """Seconds that a dry run takes at the far end of the link, five times."""
    reference = f"{REGISTRY}/rig/{IMAGES[image]}"
    line = [*program(), "pull", "-q", "-n", "--plain-http", "--home", str(WORK / "home"), reference]
    found = []
    for _ in range(5):
        wait_until_quiet()
        started = time.monotonic()
        subprocess.run(["ip", "netns", "exec", SPACE, *line], check=True, env=environment(), stdout=subprocess.DEVNULL)
        found.append(time.monotonic() - started)
    return found


def commands(image: str) -> dict[str, str]:
    name, reference = IMAGES[image].partition(":")[0], f"{REGISTRY}/rig/{IMAGES[image]}"
    layers = json.loads((RIG / "images.json").read_text())[image]["layers"]
    urls = " ".join(f"http://{REGISTRY}/v2/rig/{name}/blobs/{layer['gz']}" for layer in layers)
    found = {
        "curl >/dev/null": f"for u in {urls}; do curl -sf $u >/dev/null || exit 1; done",
        "msb-pull": f"exec {shlex.join(program())} pull -q --plain-http --home {WORK}/home {reference}",
    }
    if shutil.which("podman"):
        stores = f"--root {WORK}/pod --runroot {WORK}/run --storage-driver overlay"
        found["podman"] = f"exec podman {stores} pull -q --tls-verify=false {reference}"
    if shutil.which("skopeo") and shutil.which("umoci"):
        copy = f"skopeo copy -q --src-tls-verify=false docker://{reference} oci:{WORK}/oci:x"
        found["skopeo + umoci"] = f"{copy} && exec umoci unpack --image {WORK}/oci:x {WORK}/bundle"
    if MSB.exists():
        found["msb"] = f"MSB_HOME={WORK}/home exec {MSB} pull -q --insecure {reference}"
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=int, default=100, help="Mbit/s")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--most", type=float, default=1.03, help="times the link that msb-pull may take")
    parser.add_argument("--image", choices=IMAGES, default="debian")
    parser.add_argument("--peers", nargs="+", help="default: all that are installed")
    parser.add_argument("--out", type=Path, default=RIG / "bench")
    options = parser.parse_args()
    size = sum(x["gz_bytes"] for x in json.loads((RIG / "images.json").read_text())[options.image]["layers"])
    least = size * 8 / (options.rate * 1e6)
    chosen = {k: v for k, v in commands(options.image).items() if not options.peers or k in options.peers}
    what, runs = f"{options.image} at {options.rate} Mbit/s", []
    with slow_link(options.rate), registry(RIG / "logs"):
        remove_store()
        starting = start_up(options.image)
        for number in range(1, options.rounds + 1):
            for peer, command in chosen.items():
                remove_store()
                inside = ["ip", "netns", "exec", SPACE, "sh", "-c", command]
                runs.append(measure(what, peer, number, inside, log=RIG / "logs" / "bench.log"))
                print(f"{peer:16} {runs[-1].seconds:7.2f} s, status {runs[-1].status}", file=sys.stderr, flush=True)
    remove_store()
    rows = []
    for peer in chosen:
        good = [x.seconds for x in runs if x.peer == peer and x.status == 0]
        rows.append([peer, spread(good), spread([x / least for x in good], 3)] if good else [peer, "failed", ""])
    ours = [x.seconds for x in runs if x.peer == "msb-pull" and x.status == 0]
    if ours:
        rest = [x - median(starting) for x in ours]
        rows.append(["msb-pull after start-up", spread(rest), spread([x / least for x in rest], 3)])
    text = table([what, "seconds", "times the link"], rows)
    text += f"\n\n{size / 1e6:.1f} MB over {options.rate} Mbit/s: {least:.2f} s."
    text += f" A dry run of msb-pull takes {spread(starting)} s."
    write(options.out, f"link-{options.rate}", text, runs, bytes=size, least_seconds=least, start_up=starting)
    if any(x.status for x in runs if x.peer == "msb-pull"):
        return 1
    return 1 if ours and median(ours) > options.most * least else 0


if __name__ == "__main__":
    sys.exit(main())
