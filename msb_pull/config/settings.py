"""Settings: option before environment before file before what is built in.

The names of all variables that msb-pull itself defines stand here, once. Credentials are not settings: they are read by
the module that uses them, and never stand in the file.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msb_pull.ground.errors import UsageError
from msb_pull.ground.places import home
from msb_pull.ground.sizes import parse_size

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

POLICIES = ("missing", "always", "newer", "never")
PROGRESS_MODES = ("auto", "bars", "plain", "json", "none")
COLOR_MODES = ("auto", "always", "never")
MAX_JOBS = 64
# The largest window that libzstd takes, and that its own tool writes (`zstd --long=31`).
_LARGEST_WINDOW = 2 << 30

# The settings that options set, by the name of the option.
OPTIONS = frozenset(
    (
        *("home", "layers_dir", "config", "progress", "color"),
        *("policy", "platform", "jobs", "limit_rate", "max_layer_size", "max_entries", "max_window", "authfile"),
    )
)

# Key of a setting -> the variable that sets it.
ENVIRONMENT = {
    "home": "MICROSANDBOX_HOME",
    "layers_dir": "MSB_PULL_LAYERS_DIR",
    "config": "MSB_PULL_CONFIG",
    "progress": "MSB_PULL_PROGRESS",
    "platform": "MSB_PULL_PLATFORM",
    "jobs": "MSB_PULL_JOBS",
    "default_registry": "OCI_REGISTRY_DOMAIN",
    "authfile": "REGISTRY_AUTH_FILE",
}


@dataclass(frozen=True, slots=True)
class RegistrySettings:
    """How to reach one registry; ``mirrors`` are tried in order, then the registry itself."""

    mirrors: tuple[str, ...] = ()
    plain_http: bool = False
    tls_no_verify: bool = False
    ca_cert: Path | None = None


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that can be set, checked; sizes and rates in bytes, times in seconds.

    ``color`` is None for "when the stream is a terminal". ``interactive`` is False inside CI, ``moving`` on a terminal
    whose cursor cannot be moved, ``unicode`` where the locale cannot show more than ASCII. ``warnings`` says what was
    left out of them.
    """

    home: Path
    layers_dir: Path | None = None
    config: Path | None = None
    jobs: int = 4
    platform: str | None = None
    default_registry: str = "docker.io"
    sync: bool = False
    policy: str = "missing"
    retries: int = 5
    timeout: float = 60.0
    limit_rate: int | None = None
    max_layer_size: int = 64 << 30
    max_entries: int = 5_000_000
    max_window: int = 128 << 20
    authfile: Path | None = None
    registries: Mapping[str, RegistrySettings] = field(default_factory=dict)
    progress: str = "auto"
    color: bool | None = None
    interactive: bool = True
    moving: bool = True
    unicode: bool = True
    warnings: tuple[str, ...] = ()


def load(flags: Mapping[str, Any], environ: Mapping[str, str] | None = None) -> Settings:
    """Settings from options, the environment (the process's own by default) and the configuration file.

    ``flags`` holds options by the key of their setting; None means not given, and text is read as it is everywhere.
    Raises UsageError that names the option, variable or key whose value cannot be used.
    """
    environ = os.environ if environ is None else environ
    given = _Given({name: value for name, value in flags.items() if value is not None}, environ)
    given.read_file(given.take("config", _path, None))
    take = given.take
    return Settings(
        home=take("home", _path, None) or _default_home(environ),
        layers_dir=take("layers_dir", _path, None),
        config=given.file,
        jobs=take("jobs", _jobs, min(8, 2 * _cores())),
        platform=take("platform", _text, None),
        default_registry=take("default_registry", _text, "docker.io"),
        sync=take("sync", _flag, False),
        policy=take("policy", _one_of(POLICIES), "missing"),
        retries=take("retries", _count, 5),
        timeout=take("timeout", _seconds, 60.0),
        limit_rate=take("limit_rate", _size, None),
        max_layer_size=take("max_layer_size", _size, 64 << 30),
        max_entries=take("max_entries", _entries, 5_000_000),
        max_window=take("max_window", _window, 128 << 20),
        authfile=take("authfile", _path, None),
        registries=given.registries,
        progress=take("progress", _one_of(PROGRESS_MODES), "auto"),
        color=color_choice(take("color", _one_of(COLOR_MODES), "auto"), environ),
        interactive=not environ.get("CI"),
        moving=environ.get("TERM", "dumb") != "dumb",
        unicode=_speaks_unicode(environ),
        warnings=tuple(given.warnings),
    )


class _Given:
    """What was given for each setting, and where."""

    def __init__(self, flags: Mapping[str, Any], environ: Mapping[str, str]) -> None:
        self._flags = flags
        self._environ = environ
        self._keys: Mapping[str, tuple[str, Any]] = {}
        self.file: Path | None = None
        self.warnings: list[str] = []
        self.registries: dict[str, RegistrySettings] = {}

    def take(self, key: str, convert: Callable[[Any], Any], default: Any) -> Any:
        """The converted value from the first place that has one."""
        for place, value in self._places(key):
            try:
                return convert(value)
            except ValueError as error:
                raise UsageError(f"{place}: {error}") from None
        return default

    def read_file(self, named: Path | None) -> None:
        """Reads the named file, which must exist, or the default one, which need not."""
        from msb_pull.config.file import read, read_default

        found = (named, read(named)) if named else read_default(self._environ, self.warnings.append)
        if found is None:
            return
        path, document = found
        self.file = path
        self._keys = document.keys
        self.registries = {name: _registry(path, name, table) for name, table in document.registries.items()}

    def _places(self, key: str) -> list[tuple[str, Any]]:
        places: list[tuple[str, Any]] = []
        if key in self._flags:
            places.append((f"--{key.replace('_', '-')}", self._flags[key]))
        variable = ENVIRONMENT.get(key)
        # An empty variable means unset, as it does for most programs.
        if variable and self._environ.get(variable):
            places.append((variable, self._environ[variable]))
        if key in self._keys:
            name, value = self._keys[key]
            places.append((f"{self.file}: {name}", value))
        return places


def _default_home(environ: Mapping[str, str]) -> Path:
    folder = home(environ)
    if folder is None:
        raise UsageError("no folder for images is known: this user has no home", hint="name one with --home")
    return folder / ".microsandbox"


def _registry(path: Path, name: str, table: Mapping[str, Any]) -> RegistrySettings:
    if not name or "/" in name or " " in name or not name.isprintable():
        # No reference could ever mean it, so what it says would be passed over without a word.
        raise UsageError(
            f'{path}: registries."{name}": not the host of a registry', hint="write it like registry.example.com:5000"
        )
    convert: dict[str, Callable[[Any], Any]] = {
        "mirrors": _mirrors,
        "plain_http": _flag,
        "tls_no_verify": _flag,
        "ca_cert": _path,
    }
    values = {}
    for key, value in table.items():
        try:
            values[key] = convert[key](value)
        except ValueError as error:
            raise UsageError(f'{path}: registries."{name}".{key}: {error}') from None
    return RegistrySettings(**values)


def _path(value: Any) -> Path:
    text = os.fspath(value) if isinstance(value, os.PathLike) else _text(value)
    try:
        return Path(os.path.abspath(Path(text).expanduser()))  # noqa: PTH100 - resolve() would follow symlinks
    except RuntimeError:
        raise ValueError(f"{text!r} names a home directory that is not known") from None


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{_shown(value)} is not a text" if not isinstance(value, str) else "must not be empty")
    if "\0" in value:
        raise ValueError("must not hold a NUL character")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{_shown(value)} is neither true nor false")
    return value


def _integer(value: Any, low: int, high: int | None, what: str) -> int:
    text = str(value).strip()
    is_number = not isinstance(value, (bool, float)) and text.isascii() and text.isdecimal() and len(text) < 20
    if not is_number or int(text) < low or (high is not None and int(text) > high):
        raise ValueError(f"{_shown(value)} is not {what}")
    return int(text)


def _jobs(value: Any) -> int:
    return _integer(value, 1, MAX_JOBS, f"a number from 1 to {MAX_JOBS}")


def _count(value: Any) -> int:
    return _integer(value, 0, 1000, "a number from 0 to 1000")


def _seconds(value: Any) -> float:
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = -1.0
    if isinstance(value, bool) or not 0 < seconds <= 86400:
        raise ValueError(f"{_shown(value)} is not a number of seconds above 0")
    return seconds


def _entries(value: Any) -> int:
    return _integer(value, 1, None, "a number above 0")


def _size(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    size = parse_size(_text(value))
    if size < 1:
        raise ValueError("must be above 0")
    return size


def _window(value: Any) -> int:
    size = _size(value)
    if size > _LARGEST_WINDOW:
        raise ValueError(f"{_shown(value)} is more than 2GiB, the largest window there is")
    return size


def _mirrors(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(x, str) for x in value):
        raise ValueError("must be a list of addresses")
    for address in value:
        if not address.isprintable() or " " in address:
            raise ValueError(f"{_shown(address)} is no address")
        if not address.startswith(("https://", "http://")) or len(address.split("://", 1)[1]) == 0:
            raise ValueError(
                f"{address.rpartition('@')[2].partition('?')[0]!r} does not start with https:// or http://"
            )
    return tuple(value)


def _one_of(choices: tuple[str, ...]) -> Callable[[Any], str]:
    def convert(value: Any) -> str:
        if value not in choices:
            raise ValueError(f"{_shown(value)} is not one of {', '.join(choices)}")
        return str(value)

    return convert


def _shown(value: Any) -> str:
    text = repr(value) if isinstance(value, str) else str(value)
    return {"True": "true", "False": "false"}.get(text, text)


def color_choice(mode: str = "auto", environ: Mapping[str, str] | None = None) -> bool | None:
    """Option, then NO_COLOR (no-color.org: set and not empty), then FORCE_COLOR; None is "ask the stream"."""
    environ = os.environ if environ is None else environ
    if mode != "auto":
        return mode == "always"
    if environ.get("NO_COLOR"):
        return False
    if environ.get("FORCE_COLOR", "0") not in ("", "0"):
        return True
    return False if environ.get("TERM") == "dumb" else None


def _speaks_unicode(environ: Mapping[str, str]) -> bool:
    # Python's own answer is no use: with LC_ALL=C it switches itself to UTF-8, which the terminal knows nothing of.
    locale = environ.get("LC_ALL") or environ.get("LC_CTYPE") or environ.get("LANG") or "C"
    return "utf8" in locale.lower().replace("-", "")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
