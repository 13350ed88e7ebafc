"""``export --to podman`` behind its options."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from msb_pull.ground.sizes import counted
from msb_pull.ground.text import visible
from msb_pull.image.reference import Reference
from msb_pull.work.podman.conf import conf_path
from msb_pull.work.podman.export import export_to_podman

if TYPE_CHECKING:
    from collections.abc import Sequence

    from msb_pull.cli.run import Run


def show_in_podman(run: Run, images: Sequence[str], folder: str | None) -> None:
    """Makes images ones of podman's, in ``folder`` or where it goes by default; the first time says what podman needs.

    Standard output stays empty, or gets the document.
    """
    names = run.names(images)
    run.session.next_step = "podman sees what it saw before; run the same command again"
    references = [Reference.parse(name) for name in names]
    result = export_to_podman(run.store_with(names), references, Path(folder) if folder else None, run.job)
    run.session.next_step = None
    if run.display.format == "json":
        run.write(
            {
                "status": "ok",
                "folder": str(result.folder),
                "images": [{"status": "ok", "image": name} for name in names],
                "shown": list(result.images),
                "first": result.first,
                "storage_conf": result.storage_conf,
            },
            "",
        )
    shown = counted(len(result.images), "image")
    run.display.note(f"podman's view {visible(str(result.folder))} shows {shown}", done=True)
    if result.first:
        run.display.note(f"For podman to read it, {conf_path()} needs these lines (fuse-overlayfs, or owners are wrong")
        run.display.note("and deleted files are there again):")
        for line in ("", *result.storage_conf.splitlines()):
            run.display.note(f"    {line}" if line else "")
