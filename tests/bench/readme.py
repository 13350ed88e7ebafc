"""Writes the figures of bench.py into the tables of docs/performance.md, which has one for each processor.

    python tests/bench/readme.py [--from DIR]

DIR is where bench.py has left ``bench.json``. Figures are medians; a run that other work disturbed counts like any.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import textwrap
from pathlib import Path
from statistics import median

from bench import IMAGES, MSB, PEERS, US
from measure import REPOSITORY, RIG, table

PAGE = REPOSITORY / "docs" / "performance.md"
BLOCK = re.compile(r"<!-- performance of (?P<processor>[^\n]*): .*? -->\n.*?<!-- end of performance -->\n", re.DOTALL)
HEAD = "<!-- performance of {}: figures from tests/bench, never typed by hand -->"
END = "<!-- end of performance -->"
PROGRAMS = {"podman": ["podman"], "skopeo": ["skopeo"], "umoci": ["umoci"], "msb": [str(MSB)]}


def version(command: list[str]) -> str:
    run = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
    found = re.search(r"\d+(\.\d+)+", run.stdout)
    return found[0] if found else "?"


def figures(document: dict) -> str:
    cold: dict[tuple[str, str], list[float]] = {}
    for run in document["runs"]:
        if run["status"] == 0:
            cold.setdefault((run["what"], run["peer"]), []).append(run["seconds"])
    info = json.loads((RIG / "images.json").read_text())
    sizes = {image: sum(layer["gz_bytes"] for layer in info[image]["layers"]) / 1e6 for image in IMAGES}
    head = ["cold pull, seconds", *(f"{image} ({sizes[image]:.0f} MB)" for image in IMAGES)]
    rows = [[peer, *(f"{median(cold[f'cold {image}', peer]):.2f}" for image in IMAGES)] for peer in PEERS]
    return table(head, rows)


def words(document: dict) -> str:
    runs = document["runs"]
    ours = [run for run in runs if run["peer"] == US]
    warm = median(run["seconds"] for run in ours if run["what"].startswith("warm"))
    versions = ", ".join(f"{name} {version(command)}" for name, command in PROGRAMS.items())
    noisy = sum(run["noisy"] for run in runs)
    text = (
        f"Medians of {document['rounds']} interleaved rounds on a virtual machine ({document['machine']}), registry on "
        f"the loopback, one and the same journaled file system; {versions}. {noisy} of {len(runs)} runs were disturbed "
        f"by other work on the machine. A warm pull took {warm:.2f} s; the largest process of msb-pull had "
        f"{max(run['largest_mib'] for run in ours):.0f} MiB, all together {max(run['tree_mib'] for run in ours):.0f} "
        "MiB. `curl … | tar` checks nothing and sets no attribute; msb writes one file a layer."
    )
    return "\n".join(textwrap.wrap(text, 120, break_on_hyphens=False))


def processor(document: dict) -> str:
    """As in "2 cores, NAME, Linux 6.18"."""
    return document["machine"].split(", ")[1]


def put(page: str, name: str, text: str) -> str:
    """The page with the figures of a processor in place of its old ones, or above those of all others."""
    block = f"{HEAD.format(name)}\n{text}\n{END}\n"
    found = list(BLOCK.finditer(page))
    start = end = found[0].start()
    for match in found:
        if match["processor"] == name:
            start, end = match.span()
    return page[:start] + block + ("" if end > start else "\n") + page[end:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", type=Path, default=RIG / "bench", dest="folder")
    document = json.loads((parser.parse_args().folder / "bench.json").read_text())
    text = f"{figures(document)}\n\n{words(document)}"
    PAGE.write_text(put(PAGE.read_text(encoding="utf-8"), processor(document), text), encoding="utf-8")


if __name__ == "__main__":
    main()
