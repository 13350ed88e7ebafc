"""The ``inspect`` command behind its options."""

from __future__ import annotations

import datetime
import json
import os
import stat
from typing import TYPE_CHECKING, Any

from msb_pull.display.tables import ago, facts, rfc3339, table
from msb_pull.ground.sizes import counted, format_size
from msb_pull.ground.text import visible, visible_bytes
from msb_pull.image.reference import Reference
from msb_pull.work.listing import InspectedImage, InspectedLayer, inspect_image, list_files

if TYPE_CHECKING:
    from collections.abc import Sequence

    from msb_pull.cli.run import Run
    from msb_pull.work.merge import ListedFile

_TYPE_BITS = {
    "directory": stat.S_IFDIR,
    "symlink": stat.S_IFLNK,
    "char": stat.S_IFCHR,
    "block": stat.S_IFBLK,
    "fifo": stat.S_IFIFO,
}
# What a person wants to know of an image's configuration, in this order.
_CONFIG = (
    ("Entrypoint", "Entrypoint"),
    ("Command", "Cmd"),
    ("Environment", "Env"),
    ("Directory", "WorkingDir"),
    ("User", "User"),
    ("Ports", "ExposedPorts"),
    ("Volumes", "Volumes"),
    ("Stop signal", "StopSignal"),
    ("Labels", "Labels"),
)
_LAYER = ("LAYER", "DIGEST", "SIZE", "UNPACKED", "ENTRIES", "STATE", "PATH")


def show_image(run: Run, text: str, *, part: str | None) -> None:
    """Prints all about one image, or just its layer directories, its mount string or its files."""
    store = run.store(create=False)
    reference = Reference.parse(text, run.settings.default_registry)
    if part == "files":
        files = list_files(store, reference)
        run.write([_file_document(file) for file in files], "\n".join(_file_line(file) for file in files))
        return
    image = inspect_image(store, reference)
    if part is not None:
        # Whoever asks where the layers are is about to read them.
        store.uses.touch(image.reference)
    if part == "layers":
        paths = image.directories()
        run.write(paths, "\n".join(paths))
    elif part == "lowerdir":
        lowerdir = image.lowerdir()
        run.write({"lowerdir": lowerdir}, lowerdir)
    else:
        run.write(_document(image), _page(image, color=run.display.colored_stdout, room=run.display.room))


def _page(image: InspectedImage, *, color: bool, room: int) -> str:
    now = datetime.datetime.now(datetime.UTC)
    pairs = [
        ("Image", image.reference),
        ("Digest", image.digest or "unknown: another program pulled this image"),
        ("Platform", image.platform or "unknown"),
        ("Size", f"{format_size(image.size)} compressed, {counted(len(image.layers), 'layer')}"),
        ("Pulled", f"{ago(image.pulled_at, now)}, {rfc3339(image.pulled_at)}"),
        *([("Source", image.source)] if image.source else []),
        *([("Created", image.created)] if image.created else []),
        *(("Signed by", visible(f"{x.signer}, as {x.rule} required")) for x in image.signatures),
        *((title, shown) for title, key in _CONFIG if (shown := _shown_value(image.config.get(key)))),
    ]
    return f"{facts(pairs, color=color)}\n\n{_layers_table(image.layers, color=color, room=room)}"


def _layers_table(layers: Sequence[InspectedLayer], *, color: bool, room: int) -> str:
    """The layers, with their paths beside them or, where these do not fit there, below, each alone in its line.

    A path that a terminal breaks into two lines is easily copied only then.
    """
    rows = [_layer_row(number, layer) for number, layer in enumerate(layers, start=1)]
    right = ("LAYER", "SIZE", "UNPACKED", "ENTRIES")
    shown = table(_LAYER, rows, right=right, color=color)
    if not room or all(len(line) <= room for line in shown.splitlines()[1:]):
        return shown
    others = table(_LAYER[:-1], [row[:-1] for row in rows], right=right, color=color)
    return f"{others}\n\n{table(_LAYER[-1:], [row[-1:] for row in rows], color=color)}"


def _layer_row(number: int, layer: InspectedLayer) -> tuple[str, ...]:
    return (
        str(number),
        layer.digest.partition(":")[2][:12],
        format_size(layer.size),
        "-" if layer.unpacked is None else format_size(layer.unpacked),
        "-" if layer.entries is None else str(layer.entries),
        layer.state,
        str(layer.path),
    )


def _shown_value(value: Any) -> str | list[str]:
    """A value of the configuration: commands as JSON, lists of other things one per line."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(x, str) and "=" in x for x in value):
        return value
    if isinstance(value, list):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, dict):
        return [f"{key}={item}" if isinstance(item, str) else str(key) for key, item in value.items()]
    return ""


def _document(image: InspectedImage) -> dict[str, Any]:
    return {
        "reference": image.reference,
        "digest": image.digest,
        "platform": image.platform,
        "size_bytes": image.size,
        "pulled_at": rfc3339(image.pulled_at),
        "source": image.source,
        "created": image.created,
        "signatures": [
            {
                "signer": x.signer,
                "signed": x.signed,
                "rule": x.rule,
                "checked_at": rfc3339(x.checked_at) if x.checked_at else None,
            }
            for x in image.signatures
        ],
        "config": _config_document(image),
        "layers": [
            {
                "digest": layer.digest,
                "diff_id": layer.diff_id,
                "media_type": layer.media_type,
                "size_bytes": layer.size,
                "unpacked_bytes": layer.unpacked,
                "entries": layer.entries,
                "state": layer.state,
                "path": str(layer.path),
            }
            for layer in image.layers
        ],
    }


def _config_document(image: InspectedImage) -> dict[str, Any]:
    """The parts of the configuration that a virtual machine needs, by the names CLI users know."""
    config = image.config
    return {
        "env": config.get("Env") or [],
        "entrypoint": config.get("Entrypoint") or [],
        "cmd": config.get("Cmd") or [],
        "workdir": config.get("WorkingDir") or "",
        "user": config.get("User") or "",
        "ports": sorted(config.get("ExposedPorts") or {}),
        "volumes": sorted(config.get("Volumes") or {}),
        "stop_signal": config.get("StopSignal"),
        "labels": config.get("Labels") or {},
    }


def _file_line(file: ListedFile) -> str:
    """As ``tar -tv`` shows it: ``-rwxr-xr-x 0/0  1234 2023-11-14 22:13 /bin/sh -> dash``."""
    mode = stat.filemode(_TYPE_BITS.get(file.kind, stat.S_IFREG) | file.mode)
    size = f"{file.device[0]},{file.device[1]}" if file.device else str(file.size)
    link = {"symlink": " -> ", "hardlink": " link to "}.get(file.kind, "")
    target = link + visible_bytes(file.target) if file.target is not None else ""
    owner = f"{file.uid}/{file.gid}"
    return f"{mode} {owner:<9} {size:>10} {_time(file):%Y-%m-%d %H:%M} /{visible_bytes(file.path)}{target}"


def _file_document(file: ListedFile) -> dict[str, Any]:
    """Names that are not UTF-8 keep their bytes as lone surrogates (Python's ``surrogateescape``)."""
    return {
        "path": os.fsdecode(file.path),
        "type": file.kind,
        "mode": f"{file.mode:04o}",
        "uid": file.uid,
        "gid": file.gid,
        "size_bytes": file.size,
        "mtime": rfc3339(_time(file)),
        "target": None if file.target is None else os.fsdecode(file.target),
        "device": file.device,
        "layer": file.layer,
    }


def _time(file: ListedFile) -> datetime.datetime:
    # A header may hold any number; what no calendar has is shown as its beginning.
    try:
        return datetime.datetime.fromtimestamp(file.mtime_ns // 1_000_000_000, datetime.UTC)
    except (OverflowError, ValueError, OSError):
        return datetime.datetime.fromtimestamp(0, datetime.UTC)
