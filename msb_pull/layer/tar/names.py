"""Names of entries, made relative to the root of their layer."""

from __future__ import annotations

from msb_pull.layer.rules import MAX_LEVELS, MAX_NAME, check_whiteout, is_whiteout


def clean(name: bytes) -> bytes:
    """The path below the layer's root that ``name`` means, components joined by ``/``; ``b""`` is the root itself.

    Leading slashes fall away and inner ``..`` are resolved as text, as containerd and moby do. Raises ValueError with
    a short reason for a name that is empty, holds NUL, climbs out of the layer, or has components no file system takes.
    """
    # Nearly every name is clean already, and looking at each of its components takes ten times as long.
    if len(name) <= MAX_NAME and name[:1] not in b"/." and b"//" not in name and b"/." not in name:
        if b"\0" not in name:
            return name[:-1] if name.endswith(b"/") else name
    elif not name:
        raise ValueError("the name is empty")
    if b"\0" in name:
        raise ValueError("the name holds a NUL byte")
    parts: list[bytes] = []
    for part in name.split(b"/"):
        if part in (b"", b"."):
            continue
        if part == b"..":
            if not parts:
                raise ValueError("the path escapes the layer")
            parts.pop()
            continue
        if len(part) > MAX_NAME:
            if is_whiteout(part):
                check_whiteout(part)
            raise ValueError(f"a component of the name is longer than {MAX_NAME} bytes")
        parts.append(part)
    if len(parts) > MAX_LEVELS:
        raise ValueError(f"the path is deeper than {MAX_LEVELS} levels")
    return b"/".join(parts)
