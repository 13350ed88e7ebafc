"""Digests: the names of content, and the only thing from a manifest that may become a path."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from msb_pull.ground.text import in_ascii

if TYPE_CHECKING:
    from hashlib import _Hash

_HEX_LENGTH = {"sha256": 64, "sha512": 128}
_HEX = re.compile("[a-f0-9]+", re.ASCII)
# Errors quote text from anywhere: enough of it to be recognised.
_MAX_SHOWN = 140


class InvalidDigest(ValueError):
    """The text is not a digest, or its algorithm is neither sha256 nor sha512."""


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """An algorithm (``sha256`` or ``sha512``) and its value in lower-case hex (image-spec, descriptor.md)."""

    algorithm: str
    hex: str

    @classmethod
    def parse(cls, text: str) -> Digest:
        """Parses ``algorithm:hex``; raises InvalidDigest on anything that is not exactly that."""
        algorithm, colon, value = text.partition(":")
        length = _HEX_LENGTH.get(algorithm)
        if not colon:
            raise InvalidDigest(f"{_shown(text)} is no digest (ALGORITHM:HEX)")
        if length is None:
            raise InvalidDigest(f"unsupported digest algorithm {_shown(algorithm)} (sha256 and sha512 are known)")
        if not _HEX.fullmatch(value):
            raise InvalidDigest(f"{_shown(text)} is not {algorithm}: followed by lower-case hex digits")
        if len(value) != length:
            raise InvalidDigest(f"{_shown(text)} has {len(value)} hex digits, {algorithm} has {length}")
        return cls(algorithm, value)

    @classmethod
    def of(cls, data: bytes, algorithm: str = "sha256") -> Digest:
        """The digest of ``data``."""
        return cls(algorithm, hashlib.new(algorithm, data).hexdigest())

    def hasher(self) -> _Hash:
        """A fresh hash object of this digest's algorithm."""
        return hashlib.new(self.algorithm)

    @property
    def short(self) -> str:
        """The first twelve hex digits, for people."""
        return self.hex[:12]

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"


def _shown(text: str) -> str:
    return f'"{in_ascii(text, _MAX_SHOWN)}"'


def chain_id(below: str, diff_id: str) -> str:
    """The ChainID (image-spec) of a stack with this ChainID, "" for none, and a layer with this diff_id on top."""
    return "sha256:" + hashlib.sha256(f"{below} {diff_id}".encode()).hexdigest() if below else diff_id
