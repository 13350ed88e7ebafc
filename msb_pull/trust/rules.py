"""Which rules an image has to fulfil."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from typing import TYPE_CHECKING

from msb_pull.config.signatures import SignatureRule
from msb_pull.ground.errors import SignatureError
from msb_pull.image.reference import DEFAULT_REGISTRY

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from msb_pull.image.reference import Reference

# Where Docker Hub can be reached, too.
_DOCKER_HUB = ("index.docker.io", "registry-1.docker.io")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What was asked for on signatures: the rules in order, keys for this run, and whether to go without a check."""

    rules: tuple[SignatureRule, ...] = ()
    keys: tuple[Path, ...] = ()
    unchecked: bool = False


def requirements(reference: Reference, wanted: Wanted) -> list[SignatureRule]:
    """The rules that ask for a signature of this image, all of which must hold; none where it may come unsigned.

    The first rule that matches counts, and the keys for this run beside it. Raises SignatureError where a rule takes
    no such image, or asks for a signature that nobody wants to check.
    """
    rule = matching(reference, wanted.rules)
    found = [] if rule is None or rule.accept else [rule]
    if rule is not None and rule.reject:
        raise SignatureError(f"{reference}: not signed as required", cause=f"{rule} takes no such image")
    if found and wanted.unchecked:
        raise SignatureError(
            f"{reference}: not signed as required",
            cause=f"{rule} asks for a signature, and --no-signature-check does not lift that",
            hint="change the rule, or leave out the option",
        )
    if wanted.keys:
        found.append(SignatureRule(images="*", keys=wanted.keys, place="--require-signature"))
    return found


def matching(reference: Reference, rules: Sequence[SignatureRule]) -> SignatureRule | None:
    """The first rule that means the image, by ``registry/repository`` alone or with tag or digest behind it."""
    bare = f"{_host(reference.registry)}/{reference.repository}"
    tagged = f"{bare}:{reference.tag}" if reference.tag else bare
    names = {bare, tagged, f"{tagged}@{reference.digest}" if reference.digest else bare}
    for rule in rules:
        host, slash, rest = rule.images.partition("/")
        pattern = _host(host) + slash + rest
        if any(fnmatch.fnmatchcase(name, pattern) for name in names):
            return rule
    return None


def _host(name: str) -> str:
    """One spelling of a registry's host, so that another one is no way around a rule."""
    host = name.lower().removesuffix(":443")
    return DEFAULT_REGISTRY if host in _DOCKER_HUB else host
