"""Which rules an image has to fulfil."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from typing import TYPE_CHECKING

from msb_pull.config.signatures import SignatureRule
from msb_pull.ground.errors import SignatureError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from msb_pull.image.reference import Reference


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
    # Hosts know no case, so that another spelling must not be another image.
    registry = reference.registry.lower().removesuffix(":443")
    bare = f"{registry}/{reference.repository}"
    tagged = f"{bare}:{reference.tag}" if reference.tag else bare
    names = {bare, tagged, f"{tagged}@{reference.digest}" if reference.digest else bare}
    for rule in rules:
        host, slash, rest = rule.images.partition("/")
        pattern = host.lower().removesuffix(":443") + slash + rest
        if any(fnmatch.fnmatchcase(name, pattern) for name in names):
            return rule
    return None
