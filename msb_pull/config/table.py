"""The table of settings: under which names each can be given, how its value is read, and what its help page says.

Defaults are in :class:`msb_pull.config.settings.Settings`. The names of all variables that msb-pull itself defines
are here, once. Credentials are not settings: the module that uses them reads them, and they are never in the file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from msb_pull.config.values import (
    one_of,
    to_count,
    to_entries,
    to_flag,
    to_jobs,
    to_path,
    to_seconds,
    to_size,
    to_text,
    to_window,
)
from msb_pull.ground.limits import Limits

if TYPE_CHECKING:
    from collections.abc import Callable

POLICIES = ("missing", "always", "newer", "never")
PROGRESS_MODES = ("auto", "bars", "plain", "json", "none")
COLOR_MODES = ("auto", "always", "never")
# Sections of a help page.
ACCESS = "Registry and credentials"
LIMITS = "Limits"
EVERYWHERE = "Options of every command"
_DEFAULT = Limits()


@dataclass(frozen=True, slots=True)
class Setting:
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
        to_jobs,
        "N",
        "Layers to process at once, 1 to 64; default: depends on the processors.",
        short="-j",
        variable="MSB_PULL_JOBS",
        key="jobs",
    ),
    Setting("limit_rate", to_size, "BYTES/s", "Total download rate limit, such as 10M.", LIMITS, key="pull.limit_rate"),
    Setting(
        "max_layer_size",
        to_size,
        "SIZE",
        f"Largest unpacked layer to accept; default: {_DEFAULT.max_bytes >> 30}GiB.",
        LIMITS,
    ),
    Setting(
        "max_entries", to_entries, "N", f"Most files to accept in a layer; default: {_DEFAULT.max_entries}.", LIMITS
    ),
    Setting(
        "max_window",
        to_window,
        "SIZE",
        "Largest zstd window to accept, which is memory for each layer being unpacked; "
        f"default: {_DEFAULT.max_window >> 20}MiB.",
        LIMITS,
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
    Setting("retries", to_count, key="pull.retries"),
    Setting("timeout", to_seconds, key="pull.timeout"),
)
TABLE = {setting.name: setting for setting in _ALL}
