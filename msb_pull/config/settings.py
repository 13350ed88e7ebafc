"""Settings: option before environment before file before what is built in.

:mod:`msb_pull.config.table` says under which names each can be given; defaults are in :class:`Settings`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from msb_pull.config.table import TABLE, to_flag, to_mirrors, to_path
from msb_pull.ground.errors import UsageError
from msb_pull.ground.limits import Limits
from msb_pull.ground.places import home

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from msb_pull.config.signatures import SignatureRule
    from msb_pull.ground.sizes import Percent

# Setting -> its field in Limits.
_LIMITS = {"max_layer_size": "max_bytes", "max_entries": "max_entries", "max_window": "max_window"}


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

    ``color`` is None for "when the stream is a terminal", ``jobs`` for what suits the machine. ``interactive`` is False
    inside CI, ``moving`` on a terminal whose cursor cannot be moved, ``unicode`` where the locale cannot show more than
    ASCII. ``warnings`` says what was left out of them, ``origins`` which option, variable or key gave a setting.
    """

    home: Path
    layers_dir: Path | None = None
    config: Path | None = None
    jobs: int | None = None
    platform: str | None = None
    default_registry: str = "docker.io"
    sync: bool = False
    policy: str = "missing"
    retries: int = 5
    timeout: float = 60.0
    limit_rate: int | None = None
    limits: Limits = field(default_factory=Limits)
    authfile: Path | None = None
    msb: str = "msb"
    keep: int | None = None
    min_free: int | Percent | None = None
    registries: Mapping[str, RegistrySettings] = field(default_factory=dict)
    signatures: tuple[SignatureRule, ...] = ()
    progress: str = "auto"
    color: bool | None = None
    interactive: bool = True
    moving: bool = True
    unicode: bool = True
    warnings: tuple[str, ...] = ()
    origins: Mapping[str, str] = field(default_factory=dict)


def load(flags: Mapping[str, Any], environ: Mapping[str, str] | None = None) -> Settings:
    """Settings from options, the environment (the process's own by default) and the configuration file.

    ``flags`` holds options by the key of their setting; None means not given, and text is read as in the other places.
    Raises UsageError that names the option, variable or key whose value cannot be used.
    """
    environ = os.environ if environ is None else environ
    given = _Given({name: value for name, value in flags.items() if value is not None}, environ)
    given.read_file(given.take("config"))
    found = {name: value for name in TABLE if (value := given.take(name)) is not None}
    found["home"] = found.get("home") or _default_home(environ)
    found["config"] = given.file
    found["limits"] = Limits(**{field: found.pop(name) for name, field in _LIMITS.items() if name in found})
    found["color"] = color_choice(found.get("color", "auto"), environ)
    return Settings(
        **found,
        registries=given.registries,
        signatures=given.signatures,
        interactive=not environ.get("CI"),
        moving=environ.get("TERM", "dumb") != "dumb",
        unicode=_speaks_unicode(environ),
        warnings=tuple(given.warnings),
        origins=given.origins,
    )


class _Given:
    """What was given for each setting, and where."""

    def __init__(self, flags: Mapping[str, Any], environ: Mapping[str, str]) -> None:
        self._flags = flags
        self._environ = environ
        self._keys: Mapping[str | None, Any] = {}
        self.file: Path | None = None
        self.warnings: list[str] = []
        self.origins: dict[str, str] = {}
        self.registries: dict[str, RegistrySettings] = {}
        self.signatures: tuple[SignatureRule, ...] = ()

    def take(self, name: str) -> Any:
        """The value from the first place that has one, None where no place has."""
        for place, value in self._places(name):
            self.origins[name] = place
            try:
                return TABLE[name].parse(value)
            except ValueError as error:
                raise UsageError(f"{place}: {error}") from None
        return None

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
        if document.signatures is not None:
            from msb_pull.config.signatures import parse_rules

            self.signatures = parse_rules(path, document.signatures)

    def _places(self, name: str) -> list[tuple[str, Any]]:
        setting = TABLE[name]
        places: list[tuple[str, Any]] = []
        if name in self._flags:
            places.append((setting.option, self._flags[name]))
        # An empty variable means unset, as it does for most programs.
        if setting.variable and self._environ.get(setting.variable):
            places.append((setting.variable, self._environ[setting.variable]))
        if setting.key in self._keys:
            places.append((f"{self.file}: {setting.key}", self._keys[setting.key]))
        return places


def _default_home(environ: Mapping[str, str]) -> Path:
    folder = home(environ)
    if folder is None:
        raise UsageError("no place for images: this user has no home directory", hint="name one with --home")
    return folder / ".microsandbox"


def _registry(path: Path, name: str, table: Mapping[str, Any]) -> RegistrySettings:
    if not name or "/" in name or " " in name or not name.isprintable():
        # No reference could ever mean it, so what it says would be passed over without a word.
        raise UsageError(
            f'{path}: registries."{name}": not the host of a registry', hint="write it like registry.example.com:5000"
        )
    convert: dict[str, Callable[[Any], Any]] = {
        "mirrors": to_mirrors,
        "plain_http": to_flag,
        "tls_no_verify": to_flag,
        "ca_cert": to_path,
    }
    values = {}
    for key, value in table.items():
        try:
            values[key] = convert[key](value)
        except ValueError as error:
            raise UsageError(f'{path}: registries."{name}".{key}: {error}') from None
    return RegistrySettings(**values)


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
    # Python's own answer does not help: with LC_ALL=C it switches itself to UTF-8, which says nothing of the terminal.
    locale = environ.get("LC_ALL") or environ.get("LC_CTYPE") or environ.get("LANG") or "C"
    return "utf8" in locale.lower().replace("-", "")
