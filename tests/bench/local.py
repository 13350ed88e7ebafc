"""Measures what needs no network: verify, save, ls of 1,000 images, start-up, and a TAB in bash.

    python tests/bench/local.py [--rounds 5] [--image python] [--out DIR]

verify and save work on an image of the rig, pulled from its layout; the other figures need no rig.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import median

from bench import IMAGES
from measure import REPOSITORY, RIG, Run, environment, measure, program, spread, table, write

sys.path.insert(0, str(REPOSITORY))
WORK = (RIG / "store" if (RIG / "store").is_dir() else Path("/var/tmp")) / "bench-local"
LOG = WORK / "log"

TAB = r"""
source {script}
fill=$(complete -p msb-pull); fill=${{fill#*-F }}; fill=${{fill%% *}}
COMP_WORDS=(msb-pull inspect docker.io/); COMP_CWORD=2
COMP_LINE="msb-pull inspect docker.io/"; COMP_POINT=${{#COMP_LINE}}
$fill msb-pull docker.io/ inspect
((${{#COMPREPLY[@]}}))
"""


def run(*arguments: str, home: str) -> list[str]:
    return [*program(), *arguments, "--home", str(WORK / home)]


def fill_with_images(home: str, count: int) -> None:
    """Pulls the sample of the repository once and records it under ``count`` names."""
    from msb_pull.image.manifest import parse_config, parse_document
    from msb_pull.store.index.database import Database
    from msb_pull.store.index.rows import ImageRecord

    pull = ["pull", "-q", f"oci:{REPOSITORY}/tests/sample:1", "--as", "sample:0", "--platform", "linux/amd64"]
    subprocess.run(run(*pull, home=home), check=True, env=environment(), stdout=subprocess.DEVNULL)
    with Database.open(WORK / home / "oci.db", create=True) as database:
        image = database.find("docker.io/library/sample:0")
        manifest = parse_document(image.manifest_bytes, None, "sample")
        config = parse_config(image.config_bytes, manifest, "sample")
        record = ImageRecord(
            image.reference, image.digest, image.platform, image.manifest_bytes, manifest, image.config_bytes, config,
            image.source or "",
        )  # fmt: skip
        for number in range(1, count):
            database.record(record._replace(reference=f"docker.io/library/sample:{number}"))


def commands(image: str | None) -> dict[str, list[str] | str]:
    tab = TAB.format(script=REPOSITORY / "completions" / "msb-pull.bash")
    path = f"{Path(program()[0]).parent}:{os.environ['PATH']}"
    found: dict[str, list[str] | str] = {
        "bare Python": [sys.executable, "-c", ""],
        "--version": [*program(), "--version"],
        "--help": [*program(), "--help"],
        "warm pull": run("pull", "-q", "docker.io/library/sample:7", "--platform", "linux/amd64", home="many"),
        "ls of 1,000 images": run("ls", home="many"),
        "ls --format json": run("ls", "--format", "json", home="many"),
        "TAB in bash": f"MICROSANDBOX_HOME={WORK}/many PATH={shlex.quote(path)} bash -c {shlex.quote(tab)}",
    }
    if image:
        found["verify"] = run("verify", "-q", home="real")
        found["verify --quick"] = run("verify", "-q", "--quick", home="real")
        found["save"] = run("save", "-q", "real:1", "-o", "/dev/null", home="real")
    return found


def row(name: str, runs: list[Run], facts: dict[str, int]) -> list[str]:
    good = [x.seconds for x in runs if x.peer == name and x.status == 0]
    if not good:
        return [name, "failed", "", ""]
    rate = ""
    if name in ("verify", "save"):
        rate = f"{facts['bytes'] / 1e6 / median(x.cpu for x in runs if x.peer == name):.0f} MB per CPU second"
    elif name == "verify --quick":
        rate = f"{facts['entries'] / median(good):,.0f} entries/s"
    return [name, spread(good, 3), f"{max(x.tree_mib for x in runs if x.peer == name):.0f}", rate]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--image", choices=IMAGES, default="python")
    parser.add_argument("--out", type=Path, default=RIG / "bench")
    options = parser.parse_args()
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    fill_with_images("many", 1000)
    layout, facts = RIG / "layouts" / options.image, {}
    if layout.is_dir():
        layers = json.loads((RIG / "images.json").read_text())[options.image]["layers"]
        facts = {key: sum(layer[key] for layer in layers) for key in ("bytes", "entries")}
        source = f"oci:{layout}:{IMAGES[options.image].partition(':')[2]}"
        pull = run("pull", "-q", source, "--as", "real:1", "--platform", "linux/amd64", home="real")
        subprocess.run(pull, check=True, env=environment(), stdout=subprocess.DEVNULL)
    runs, chosen = [], commands(options.image if facts else None)
    for number in range(1, options.rounds + 1):
        for name, command in chosen.items():
            runs.append(measure("local", name, number, command, log=LOG, quiet=5))
            print(f"{name:20} {runs[-1].seconds:7.3f} s, status {runs[-1].status}", file=sys.stderr, flush=True)
    text = table(["local", "seconds", "all processes MiB", "rate"], [row(name, runs, facts) for name in chosen])
    if facts:
        text += f"\n\nverify and save: {options.image}, {facts['bytes'] / 1e6:.0f} MB in {facts['entries']:,} entries."
    write(options.out, "local", text, runs, **facts)
    shutil.rmtree(WORK)
    return 0 if all(x.status == 0 for x in runs) else 1


if __name__ == "__main__":
    sys.exit(main())
