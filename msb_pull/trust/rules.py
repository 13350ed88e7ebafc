"""Which rules an image has to fulfil."""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from msb_pull.config.signatures import SignatureRule
from msb_pull.ground.errors import SignatureError
from msb_pull.image.host import canonical_host
from msb_pull.image.reference import DEFAULT_REGISTRY

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from msb_pull.image.reference import Reference

_IPV6 = re.compile(r"\[([0-9a-f]*:[0-9a-f:.]*\].*)", re.DOTALL)
_OFFICIAL = f"{DEFAULT_REGISTRY}/library/"


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
    """The first rule that means the image, by ``registry/repository`` alone or with tag, digest or both behind it.

    Other spellings of a host, and ``docker.io/ubuntu`` for ``docker.io/library/ubuntu``, are no way around a rule.
    """
    names = [f"{canonical_host(reference.registry)}/{reference.repository}"]
    names += [name.replace(_OFFICIAL, f"{DEFAULT_REGISTRY}/", 1) for name in names if name.startswith(_OFFICIAL)]
    tags = ["", f":{reference.tag}"] if reference.tag else [""]
    digests = ["", f"@{reference.digest}"] if reference.digest else [""]
    every = [name + tag + digest for name in names for tag in tags for digest in digests]
    for rule in rules:
        pattern = _pattern(rule.images)
        if any(fnmatch.fnmatchcase(name, pattern) for name in every):
            return rule
    return None


def _pattern(images: str) -> str:
    host, slash, rest = images.partition("/")
    # The brackets of an address are no set of characters.
    return _IPV6.sub(r"[[]\1", canonical_host(host)) + slash + rest
