"""The commands that check, free and copy what the store holds, behind their options."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msb_pull.errors import ContentError
from msb_pull.image.reference import Reference
from msb_pull.lines import short
from msb_pull.sizes import counted, format_size
from msb_pull.streams import visible, visible_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from msb_pull.cli_run import Run
    from msb_pull.layer.check import Damage
    from msb_pull.verify import LayerReport, VerifyReport


def verify_store(run: Run, images: Sequence[str], *, quick: bool, repair: bool) -> None:
    """Verifies images, prints one line for each damage, and says how it went; code 6 when damage is left."""
    from msb_pull.verify import verify_images

    references = [str(Reference.parse(text, run.settings.default_registry)) for text in images]
    store = run.store(create=False)
    report = verify_images(
        store, references, quick=quick, jobs=run.settings.jobs, observer=run.observe, cancel=run.cancel
    )
    for layer in report.layers:
        if layer.remark:
            run.warn(f"layer {short(layer.digest)}: {layer.remark}")
    lines = [_damage_line(layer, damage) for layer in report.layers for damage in layer.damages]
    run.write(_verify_document(report), "\n".join(lines))
    if report.damaged:
        message = f"{len(report.damaged)} of {counted(len(report.layers), 'layer')} damaged"
        error = ContentError(message, hint="`msb-pull verify --repair` fetches damaged layers again")
        run.session.tell(error)
        run.fail([error])
    else:
        run.display.note(_verify_summary(report, quick=quick), done=True)


def _damage_line(layer: LayerReport, damage: Damage) -> str:
    """Five fields with a tab between them, which no field can hold."""
    path = "/" + visible_bytes(damage.path)
    return "\t".join((short(layer.digest), path, damage.kind, visible(damage.expected), visible(damage.found)))


def _verify_summary(report: VerifyReport, *, quick: bool) -> str:
    size = format_size(sum(layer.bytes for layer in report.layers))
    proven = len(report.layers) - len(report.unprovable)
    text = f"{'Compared' if quick else 'Verified'} {counted(proven, 'layer')} ({size}) in {report.seconds:.1f}s"
    if report.repaired:
        text += f", {counted(len(report.repaired), 'layer')} repaired"
    if report.unprovable:
        text += f"; {counted(len(report.unprovable), 'layer')} cannot be proven"
    return text


def _verify_document(report: VerifyReport) -> dict[str, Any]:
    return {
        "status": "failed" if report.damaged else "ok",
        "images": list(report.images),
        "seconds": round(report.seconds, 3),
        "layers": [
            {
                "digest": layer.digest,
                "verdict": str(layer.verdict),
                "repaired": layer.digest in report.repaired,
                "remark": layer.remark or None,
                "content_bytes": layer.bytes,
                "entries": layer.entries,
                "images": list(layer.images),
                "damages": [
                    {
                        "path": "/" + damage.path.decode("utf-8", "surrogateescape"),
                        "kind": damage.kind,
                        "expected": damage.expected,
                        "found": damage.found,
                    }
                    for damage in layer.damages
                ],
            }
            for layer in report.layers
        ],
    }
