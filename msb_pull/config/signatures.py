"""Rules about signatures: the ``[[signatures]]`` of the configuration file, of which the first that matches counts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msb_pull.config.table import to_flag, to_text
from msb_pull.ground.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

_KEYS = ("images", "key", "issuer", "identity", "trust_root", "accept", "reject")
_KINDS = "key, issuer with identity and trust_root, accept = true or reject = true"
# Unlike for `ls` there are no short names: a rule that matched nothing would let everything pass.
_WITH_HOST = re.compile(r"\*.*|localhost/.+|[^/]*[.:][^/]*/.+", re.DOTALL)
# What no name of an image can hold, nor any part of a glob.
_IMPOSSIBLE = re.compile(r"[^a-zA-Z0-9._:/@+*?\[\]!-]|://|//|/$")
_CAPITAL = re.compile(r"[^/]*/[^*?\[:@]*[A-Z]")


@dataclass(frozen=True, slots=True)
class SignatureRule:
    """What must be true of the images whose names match a glob; exactly one kind of answer is given.

    ``keys``: files with public keys (PEM), any of which must have signed. ``issuer`` and ``identity`` (a glob): who a
    Sigstore certificate must name, and ``trust_root`` the file with the authorities to believe. ``accept`` asks for no
    signature, ``reject`` takes none. ``place`` is where the rule stands, for messages.
    """

    images: str
    keys: tuple[Path, ...] = ()
    issuer: str = ""
    identity: str = ""
    trust_root: Path | None = None
    accept: bool = False
    reject: bool = False
    place: str = "rule"

    def __post_init__(self) -> None:
        kinds = (bool(self.keys), bool(self.issuer or self.identity or self.trust_root), self.accept, self.reject)
        if not _WITH_HOST.fullmatch(self.images):
            hint = f'write "docker.io/library/{self.images}" for an image of Docker Hub, "*" for all images'
            raise UsageError(f"{self.place}: images = {self.images!r} names no registry", hint=hint)
        if _IMPOSSIBLE.search(self.images) or _CAPITAL.match(self.images):
            hint = "REGISTRY/REPOSITORY as in the name of an image, in lower case, with *, ? and [...] as in a shell"
            raise UsageError(f"{self.place}: images = {self.images!r} matches no image", hint=hint)
        if sum(kinds) != 1:
            what = "says nothing" if not any(kinds) else "says more than one thing"
            raise UsageError(f"{self.place}: the rule for {self.images!r} {what}", hint=f"one of: {_KINDS}")
        if kinds[1] and not (self.issuer and self.identity and self.trust_root):
            hint = "trust_root is a trusted_root.json, as `cosign trusted-root create` writes one"
            raise UsageError(f"{self.place}: issuer, identity and trust_root go together", hint=hint)

    def __str__(self) -> str:
        """What messages call it: ``config.toml: signatures[2] (images = "ghcr.io/acme/*")``."""
        return self.place if self.place.startswith("--") else f'{self.place} (images = "{self.images}")'


def parse_rules(path: Path, value: Any) -> tuple[SignatureRule, ...]:
    """The rules of a configuration file, in order; relative paths start at its folder. Raises UsageError."""
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise UsageError(f"{path}: signatures: must be tables, each beginning with [[signatures]]")
    return tuple(_parse(path, f"{path}: signatures[{number}]", table) for number, table in enumerate(value, start=1))


def _parse(path: Path, place: str, table: dict[str, Any]) -> SignatureRule:
    def file(given: Any) -> Path:
        try:
            return path.parent / Path(to_text(given)).expanduser()
        except RuntimeError:
            raise ValueError(f"{given!r} names an unknown home directory") from None

    def files(given: Any) -> tuple[Path, ...]:
        if isinstance(given, list) and not given:
            raise ValueError("must name at least one file")
        return tuple(file(item) for item in (given if isinstance(given, list) else [given]))

    parsers: dict[str, Callable[[Any], Any]] = {
        **dict.fromkeys(("images", "issuer", "identity"), to_text),
        "key": files,
        "trust_root": file,
        "accept": _true,
        "reject": _true,
    }
    values: dict[str, Any] = {}
    for key, given in table.items():
        if key not in parsers:
            raise UsageError(f"{place}: unknown key {key}", hint=f"valid keys: {', '.join(_KEYS)}")
        try:
            values["keys" if key == "key" else key] = parsers[key](given)
        except ValueError as error:
            raise UsageError(f"{place}: {key}: {error}") from None
    if "images" not in values:
        raise UsageError(f"{place}: images is missing", hint='a glob for names, such as "ghcr.io/acme/*"')
    return SignatureRule(**values, place=place)


def _true(value: Any) -> bool:
    if not to_flag(value):
        raise ValueError("can only be true; leave it out otherwise")
    return True
