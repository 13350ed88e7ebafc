"""The table of settings: under which names each can be given, how its value is read, and what its help page says.

Defaults are in :class:`msb_pull.config.settings.Settings`. The names of all variables that msb-pull itself defines
are here, once. Credentials are not settings: the module that uses them reads them, and they are never in the file.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from msb_pull.ground.limits import Limits
from msb_pull.ground.sizes import Percent, parse_part, parse_rate, parse_size

if TYPE_CHECKING:
    from collections.abc import Callable

POLICIES = ("missing", "always", "newer", "never")
PROGRESS_MODES = ("auto", "bars", "plain", "json", "none")
COLOR_MODES = ("auto", "always", "never")
# Sections of a help page.
ACCESS = "Registry and credentials"
LIMITS = "Limits"
LOCKS = "Lock file"
EVERYWHERE = "Options of every command"
_DEFAULT = Limits()
_MAX_JOBS = 64
# The largest window that libzstd takes, and that its own tool writes (`zstd --long=31`).
_LARGEST_WINDOW = 2 << 30


# From what was typed, or read from a file, to a checked value; each raises ValueError with a text that fits behind the
# name of an option, variable or key.


def to_path(value: Any) -> Path:
    """An absolute path; ``~`` is expanded, symlinks are kept."""
    text = os.fspath(value) if isinstance(value, os.PathLike) else to_text(value)
    try:
        return Path(os.path.abspath(Path(text).expanduser()))  # noqa: PTH100 - resolve() would follow symlinks
    except RuntimeError:
        raise ValueError(f"{text!r} names an unknown home directory") from None


def to_text(value: Any) -> str:
    """Text that is not empty."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{_shown(value)} is not text" if not isinstance(value, str) else "must not be empty")
    if "\0" in value:
        raise ValueError("must not hold a NUL character")
    return value


def to_flag(value: Any) -> bool:
    """True or false, as TOML has them."""
    if not isinstance(value, bool):
        raise ValueError(f"{_shown(value)} is neither true nor false")
    return value


def whole_number(low: int, high: int | None = None) -> Callable[[Any], int]:
    """A parser of numbers from ``low`` to ``high``, None for any."""
    what = f"a number above {low - 1}" if high is None else f"a number from {low} to {high}"

    def convert(value: Any) -> int:
        text = str(value).strip()
        is_number = not isinstance(value, (bool, float)) and text.isascii() and text.isdecimal() and len(text) < 20
        if not is_number or int(text) < low or (high is not None and int(text) > high):
            raise ValueError(f"{_shown(value)} is not {what}")
        return int(text)

    return convert


def to_seconds(value: Any) -> float:
    """A time-out in seconds."""
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = -1.0
    if isinstance(value, bool) or not 0 < seconds <= 86400:
        raise ValueError(f"{_shown(value)} is not a number of seconds above 0")
    return seconds


def to_size(value: Any) -> int:
    """Bytes, from a number or a size with a unit."""
    return _above_zero(value, parse_size)


def to_rate(value: Any) -> int:
    """Bytes a second, from a number or a size with a unit, ``/s`` behind it or not."""
    return _above_zero(value, parse_rate)


def _above_zero(value: Any, parse: Callable[[str], int]) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    size = parse(to_text(value))
    if size < 1:
        raise ValueError("must be above 0")
    return size


def to_part(value: Any) -> int | Percent:
    """Bytes, from a number or a size with a unit, or a percentage."""
    if isinstance(value, str) and "%" in value:
        return parse_part(to_text(value))
    return to_size(value)


def to_window(value: Any) -> int:
    """Bytes of a window that zstd can have."""
    size = to_size(value)
    if size > _LARGEST_WINDOW:
        raise ValueError(f"{_shown(value)} is more than 2GiB, the largest window there is")
    return size


def to_mirrors(value: Any) -> tuple[str, ...]:
    """Addresses that start with http:// or https://."""
    if not isinstance(value, list) or not all(isinstance(x, str) for x in value):
        raise ValueError("must be a list of addresses")
    for address in value:
        if not address.isprintable() or " " in address:
            raise ValueError(f"{_shown(address)} is not an address")
        if not address.startswith(("https://", "http://")) or len(address.split("://", 1)[1]) == 0:
            raise ValueError(
                f"{address.rpartition('@')[2].partition('?')[0]!r} does not start with https:// or http://"
            )
    return tuple(value)


def one_of(choices: tuple[str, ...]) -> Callable[[Any], str]:
    """A parser that takes one of ``choices``."""

    def convert(value: Any) -> str:
        if value not in choices:
            raise ValueError(f"{_shown(value)} is not one of {', '.join(choices)}")
        return str(value)

    return convert


def _shown(value: Any) -> str:
    text = repr(value) if isinstance(value, str) else str(value)
    return {"True": "true", "False": "false"}.get(text, text)


class Setting(NamedTuple):
    """One setting. What takes no value from a place has None there: ``metavar`` for an option, ``variable`` of the
    environment, ``key`` of the configuration file (with its table). ``section`` is that of a help page."""

    name: str
    parse: Callable[[Any], Any]
    metavar: str | None = None
    help: str = ""
    section: str | None = None
    short: str | None = None
    variable: str | None = None
    key: str | None = None

    @property
    def option(self) -> str:
        """``--max-layer-size``."""
        return f"--{self.name.replace('_', '-')}"


_ALL = (
    Setting(
        "home",
        to_path,
        "DIR",
        "Where images live; default: ~/.microsandbox.",
        EVERYWHERE,
        variable="MICROSANDBOX_HOME",
        key="home",
    ),
    Setting(
        "layers_dir",
        to_path,
        "DIR",
        "Where layers live; default: HOME/layers.",
        EVERYWHERE,
        variable="MSB_PULL_LAYERS_DIR",
        key="layers_dir",
    ),
    Setting(
        "config",
        to_path,
        "FILE",
        "Configuration file; default: msb-pull/config.toml in the user's configuration folder.",
        EVERYWHERE,
        variable="MSB_PULL_CONFIG",
    ),
    Setting(
        "policy",
        one_of(POLICIES),
        "|".join(POLICIES),
        "When to ask the registry. missing (default): only if the image is not complete here. always: every time, "
        "keeping layers that match. newer: like always, but falls back to the local image without a network. never: "
        "local or an error.",
        key="pull.policy",
    ),
    Setting(
        "platform",
        to_text,
        "OS/ARCH[/VARIANT]",
        "Platform to choose; default: linux and this machine's processor.",
        variable="MSB_PULL_PLATFORM",
        key="platform",
    ),
    Setting(
        "jobs",
        whole_number(1, _MAX_JOBS),
        "N",
        f"Layers to process at once, 1 to {_MAX_JOBS}; default: depends on the processors.",
        short="-j",
        variable="MSB_PULL_JOBS",
        key="jobs",
    ),
    Setting("limit_rate", to_rate, "BYTES/s", "Total download rate limit, such as 10M.", LIMITS, key="pull.limit_rate"),
    Setting(
        "max_layer_size",
        to_size,
        "SIZE",
        f"Largest unpacked layer to accept; default: {_DEFAULT.max_bytes >> 30}GiB.",
        LIMITS,
    ),
    Setting(
        "max_entries",
        whole_number(1),
        "N",
        f"Most files to accept in a layer; default: {_DEFAULT.max_entries}.",
        LIMITS,
    ),
    Setting(
        "max_window",
        to_window,
        "SIZE",
        "Largest zstd window to accept (memory for each layer being unpacked); "
        f"default: {_DEFAULT.max_window >> 20}MiB.",
        LIMITS,
    ),
    Setting(
        "keep",
        to_size,
        "SIZE",
        "Also remove whole images, least recently used first, until the store takes at most this, such as 20GB; "
        "default: store.keep of the configuration file.",
        key="store.keep",
    ),
    Setting(
        "min_free",
        to_part,
        "SIZE",
        "The same until the file system of the store has this much free, such as 5GB or 10%; default: store.min_free "
        "of the configuration file.",
        key="store.min_free",
    ),
    Setting(
        "authfile",
        to_path,
        "FILE",
        "Credentials as `docker login` and `podman login` write them. [env: REGISTRY_AUTH_FILE; also "
        "MSB_REGISTRY_USERNAME and MSB_REGISTRY_PASSWORD, or MSB_REGISTRY_TOKEN, for the registry MSB_REGISTRY_HOST]",
        ACCESS,
        variable="REGISTRY_AUTH_FILE",
    ),
    Setting(
        "msb",
        to_text,
        "PROGRAM",
        "Microsandbox's program, for --to microsandbox; default: `msb` in PATH.",
        variable="MSB_PATH",
    ),
    Setting(
        "progress",
        one_of(PROGRESS_MODES),
        "|".join(PROGRESS_MODES),
        "How to show progress; auto: bars on a terminal, otherwise lines.",
        EVERYWHERE,
        variable="MSB_PULL_PROGRESS",
    ),
    Setting(
        "color",
        one_of(COLOR_MODES),
        "|".join(COLOR_MODES),
        "Colour; default: auto. [env: NO_COLOR, FORCE_COLOR]",
        EVERYWHERE,
    ),
    Setting("default_registry", to_text, variable="OCI_REGISTRY_DOMAIN", key="default_registry"),
    Setting("sync", to_flag, key="sync"),
    Setting("retries", whole_number(0, 1000), key="pull.retries"),
    Setting("timeout", to_seconds, key="pull.timeout"),
)
TABLE = {setting.name: setting for setting in _ALL}
