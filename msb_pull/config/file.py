"""The configuration file: TOML with known keys and no others."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any, NamedTuple

from msb_pull.config.table import TABLE
from msb_pull.ground.errors import UsageError
from msb_pull.ground.places import config_home, read_regular

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

_MAX_BYTES = 4 << 20
_KEYS = tuple(x.key for x in TABLE.values() if x.key)
TOP_KEYS = tuple(key for key in _KEYS if "." not in key)
# Table -> its keys.
SETTING_TABLES = {
    name: tuple(key.removeprefix(f"{name}.") for key in _KEYS if key.startswith(f"{name}."))
    for name in ("pull", "store")
}
REGISTRY_KEYS = ("mirrors", "plain_http", "tls_no_verify", "ca_cert")
TABLES = (*SETTING_TABLES, "registries", "signatures")


class Document(NamedTuple):
    """``keys``: key with its table (``pull.policy``) -> value; ``registries``: host -> its table. Values unchecked.

    ``signatures`` are the rules about them, None where there are none.
    """

    keys: Mapping[str | None, Any]
    registries: Mapping[str, Mapping[str, Any]]
    signatures: Any = None


def default_path(environ: Mapping[str, str]) -> Path | None:
    """Where the file lies when none is named: in the platform's folder for user configuration, if there is one."""
    if os.uname().sysname == "Linux":
        # What platformdirs answers there, without the 4 ms that it takes to load; a test compares the two.
        base = config_home(environ)
        return base / "msb-pull" / "config.toml" if base else None
    import platformdirs

    return platformdirs.user_config_path("msb-pull", appauthor=False) / "config.toml"


def read(path: Path) -> Document:
    """Reads and takes apart the file; raises UsageError when it cannot be read, is not TOML or holds an unknown key."""
    try:
        return _take_apart(path, _parse(path))
    except FileNotFoundError:
        raise UsageError(f"{path}: no such configuration file") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot read the configuration file", cause=error.strerror) from None


def read_default(environ: Mapping[str, str], unread: Callable[[Path, str], None]) -> tuple[Path, Document] | None:
    """The file at its default place, None where there is none.

    ``unread`` hears of one that is there and may not be read, as that of another user, and why. Raises UsageError for
    one that is wrong.
    """
    path = default_path(environ)
    if path is None:
        return None
    try:
        return path, _take_apart(path, _parse(path))
    except OSError as error:
        # A symlink to what is not there is no missing file: its maker meant one to be read.
        if error.errno in (errno.ENOENT, errno.ENOTDIR) and not _dangles(path):
            return None
        unread(path, error.strerror or "unknown error")
        return None


def _dangles(path: Path) -> bool:
    return any(x.is_symlink() and not x.exists() for x in (path, path.parent))


def _parse(path: Path) -> dict[str, Any]:
    data = read_regular(path, _MAX_BYTES)
    if len(data) > _MAX_BYTES:
        raise UsageError(f"{path}: larger than a configuration file may be ({_MAX_BYTES} bytes)")
    # Most users have no such file.
    import tomli

    try:
        return tomli.loads(data.decode())
    except (ValueError, RecursionError) as error:
        # Besides its own errors tomli lets through those for bytes that are not text, long numbers and deep nesting.
        raise UsageError(f"{path}: not valid TOML", cause=str(error)) from None


def _take_apart(path: Path, raw: Mapping[str, Any]) -> Document:
    keys: dict[str | None, Any] = {}
    places = {key.rpartition(".")[2]: key for key in _KEYS}
    for key, value in raw.items():
        if key not in TABLES:
            _known(path, "", key, (*TOP_KEYS, *TABLES), elsewhere=places)
            keys[key] = value
    for name, known in SETTING_TABLES.items():
        for key, value in _table(path, name, raw.get(name, {})).items():
            _known(path, f"{name}.", key, known, elsewhere=places)
            keys[f"{name}.{key}"] = value
    registries = {}
    for host, value in _table(path, "registries", raw.get("registries", {})).items():
        prefix = f'registries."{host}"'
        registries[host] = _table(path, prefix, value)
        for key in registries[host]:
            _known(path, f"{prefix}.", key, REGISTRY_KEYS, elsewhere={})
    return Document(keys, registries, raw.get("signatures"))


def _table(path: Path, name: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        hint = 'a host with dots needs quotes: [registries."docker.io"]' if name.startswith("registries") else None
        raise UsageError(f"{path}: {name}: must be a table", hint=hint)
    return value


def _known(path: Path, prefix: str, key: str, known: Iterable[str], *, elsewhere: Mapping[str, str]) -> None:
    """Raises UsageError for a key that is not known, with the nearest one that is."""
    known = tuple(known)
    if key in known:
        return
    import difflib

    if key in elsewhere:
        hint = f"the key is {elsewhere[key]}"
    elif near := difflib.get_close_matches(key, [*known, *elsewhere], n=1):
        hint = f"did you mean {elsewhere.get(near[0], prefix + near[0])}?"
    elif prefix.startswith("registries"):
        hint = f'valid keys: {", ".join(known)}; a host with dots needs quotes: [registries."docker.io"]'
    else:
        hint = f"valid keys: {', '.join(known)}"
    raise UsageError(f"{path}: unknown key {prefix}{key}", hint=hint)
