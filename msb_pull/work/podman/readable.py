"""Whether podman can read the documents of an image: one that it cannot keeps it from listing any.

The types are those of its structures (image-spec, specs-go/v1; containers/image, manifest/docker_schema2.go), which
Go reads without regard to case, and null as if nothing were said.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from msb_pull.ground.errors import ContentError
from msb_pull.image.documents import load_json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    # A type, "time", a list of one shape, or fields by name in lower case, "" being all others.
    Shape = type | str | list[Any] | dict[str, Any]

_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", re.ASCII)
_NAMES = {str: "a text", bool: "true or false", int: "a whole number", "time": "a time of RFC 3339"}
_SET: Shape = {"": {}}
_TEXTS: Shape = {"": str}
_HEALTH: Shape = {"test": [str], **dict.fromkeys(("startperiod", "interval", "timeout", "retries"), int)}
_RUN: Shape = {
    **dict.fromkeys(("user", "workingdir", "stopsignal", "hostname", "domainname", "macaddress", "image"), str),
    **dict.fromkeys(("attachstdin", "attachstdout", "attachstderr", "tty", "openstdin", "stdinonce"), bool),
    **dict.fromkeys(("argsescaped", "networkdisabled"), bool),
    **{key: [str] for key in ("env", "entrypoint", "cmd", "onbuild", "shell")},
    **dict.fromkeys(("exposedports", "volumes"), _SET),
    "labels": _TEXTS,
    "stoptimeout": int,
    "healthcheck": _HEALTH,
}
_HISTORY: Shape = {"created": "time", **dict.fromkeys(("created_by", "author", "comment"), str), "empty_layer": bool}
_CONFIG: Shape = {
    **dict.fromkeys(("architecture", "os", "variant", "author", "os.version", "id", "parent", "comment"), str),
    **dict.fromkeys(("container", "docker_version"), str),
    "os.features": [str],
    "created": "time",
    "config": _RUN,
    "container_config": _RUN,
    "rootfs": {"type": str, "diff_ids": [str]},
    "history": [_HISTORY],
    "size": int,
}
_PLATFORM: Shape = {**dict.fromkeys(("architecture", "os", "os.version", "variant"), str), "os.features": [str]}
_DESCRIPTOR: Shape = {
    **dict.fromkeys(("mediatype", "digest", "data", "artifacttype"), str),
    "size": int,
    "urls": [str],
    "annotations": _TEXTS,
    "platform": _PLATFORM,
}
_MANIFEST: Shape = {
    "schemaversion": int,
    **dict.fromkeys(("mediatype", "artifacttype"), str),
    "config": _DESCRIPTOR,
    "layers": [_DESCRIPTOR],
    "subject": _DESCRIPTOR,
    "annotations": _TEXTS,
}


def check_readable(reference: str, manifest: bytes, config: bytes) -> str | None:
    """Raises ContentError for documents that podman cannot read; returns when the image was made, in UTC."""
    _check(reference, "manifest", load_json(manifest, reference, "manifest"), _MANIFEST)
    document = load_json(config, reference, "config")
    _check(reference, "config", document, _CONFIG)
    created = document.get("created")
    return utc(created) if created is not None else None


def utc(time: Any) -> str | None:
    """A time of RFC 3339 in UTC and whole seconds, None for anything else."""
    if not isinstance(time, str) or not _TIME.fullmatch(time):
        return None
    try:
        moment = datetime.fromisoformat(re.sub(r"\.\d+", "", time)).astimezone(UTC)
    except (ValueError, OverflowError):
        return None
    # Not every strftime fills up a year.
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ").rjust(len("2006-01-02T15:04:05Z"), "0")


def _check(reference: str, part: str, document: Mapping[str, Any], shape: Shape) -> None:
    if wrong := _misfit(document, shape, part):
        raise ContentError(
            f"{reference}: podman cannot read its {part}, and would list no image any more",
            cause=wrong[:200],
            hint="leave this image out",
        )


def _misfit(value: Any, shape: Shape, where: str) -> str | None:
    """Where a value is not of its shape, and how; the shape bounds the depth."""
    if value is None:
        return None
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return f"{where} is not an object"
        others = shape.get("")
        known = ((key, inner, shape.get(key.lower(), others)) for key, inner in value.items())
        found = (_misfit(inner, form, f"{where}.{key}") for key, inner, form in known if form is not None)
        return next(filter(None, found), None)
    if isinstance(shape, list):
        if not isinstance(value, list):
            return f"{where} is not a list"
        found = (_misfit(inner, shape[0], f"{where}[{place}]") for place, inner in enumerate(value))
        return next(filter(None, found), None)
    fits = utc(value) is not None if shape == "time" else type(value) is shape
    return None if fits else f"{where} is not {_NAMES[shape]}"
