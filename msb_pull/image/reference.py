"""References: how people and databases name images."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

from msb_pull.ground.errors import UsageError
from msb_pull.ground.text import in_ascii
from msb_pull.image.digest import Digest, InvalidDigest

DEFAULT_REGISTRY = "docker.io"

# distribution/reference, regexp.go. ASCII throughout: \w and \d of Python match letters and digits of any script.
_LABEL = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_HOST = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[(?P<address>[a-fA-F0-9:.]+)\])(?::(?P<port>[0-9]+))?", re.ASCII)
_COMPONENT = re.compile(r"[a-z0-9]+(?:(?:\.|__|_|-+)[a-z0-9]+)*", re.ASCII)
TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", re.ASCII)
_IMAGE_ID = re.compile(r"[a-f0-9]{64}", re.ASCII)
_LIKE_DIGEST = re.compile(r"[a-z0-9+._-]+:[a-fA-F0-9]{16,}(?:[:@].*)?", re.ASCII)
_MAX_REPOSITORY = 255
_MAX_SHOWN = 200
_TRANSPORTS = ("oci", "oci-archive", "docker-archive")
_FOREIGN_TRANSPORTS = ("docker-daemon", "containers-storage", "dir", "ostree", "sif")


@dataclass(frozen=True, slots=True)
class Reference:
    """A registry host, a repository and a tag, a digest, or both (distribution/reference's grammar)."""

    registry: str
    repository: str
    tag: str | None
    digest: Digest | None

    @classmethod
    def parse(cls, text: str, default_registry: str = DEFAULT_REGISTRY) -> Reference:
        """Parses what a person types; ``docker://`` in front is accepted. Raises UsageError saying what is wrong.

        ``default_registry`` is put before names without a host; it may have a path (``ghcr.io/mirror``).
        """
        _refuse_look_alikes(text)
        name, at, digest_text = text.removeprefix("docker://").partition("@")
        digest = _parse_digest(text, name, digest_text) if at else None
        name, tag = _split_tag(text, name)
        if not name:
            raise _bad(text, "the repository is missing", "name an image, like ubuntu:22.04")
        registry, repository = _split_host(text, name, default_registry)
        _check_repository(text, repository)
        if digest is None and tag is None:
            tag = "latest"
        return cls(registry, repository, tag, digest)

    def pinned(self, digest: Digest) -> str:
        """The line for machines: this reference if it names a digest already, else with ``digest`` added."""
        return str(self) if self.digest else f"{self}@{digest}"

    @property
    def target(self) -> str:
        """What to ask the registry for: the digest where there is one, else the tag."""
        return str(self.digest) if self.digest else str(self.tag)

    @property
    def doubt(self) -> str | None:
        """What a person may not have meant, though it is well-formed: a host without a repository, for example."""
        name = self.repository.removeprefix("library/")
        if self.registry == DEFAULT_REGISTRY and "/" not in name and ("." in name or name == "localhost"):
            host = f"{name}:{self.tag}" if self.tag and self.tag.isdecimal() else name
            return f'"{name}" is taken as the name of an image on {DEFAULT_REGISTRY}; for a registry, write {host}/NAME'
        if self.registry != self.registry.lower():
            return f'"{self.registry}" is taken as the host of a registry, since repositories are lower-case'
        return None

    def __str__(self) -> str:
        text = f"{self.registry}/{self.repository}"
        if self.tag:
            text += f":{self.tag}"
        return f"{text}@{self.digest}" if self.digest else text


class ImageArgument(NamedTuple):
    """One image as named on the command line: ``transport`` is ``registry`` or that of a local source.

    ``path`` and ``name`` (a tag or a reference inside it) belong to local sources; ``-`` is standard input.
    """

    transport: str
    text: str
    reference: Reference | None
    path: str | None
    name: str | None


def parse_argument(text: str, default_registry: str = DEFAULT_REGISTRY) -> ImageArgument:
    """Tells registry references from ``oci:DIR[:TAG]``, ``oci-archive:FILE[:TAG]``, ``docker-archive:FILE[:REF]``.

    As with skopeo, the path of a local source ends at its first colon, since what follows may hold colons and slashes
    itself (``localhost:5000/a/b:1``); a path with a colon is reached through a symlink or from standard input. Nothing
    is looked up. Raises UsageError.
    """
    transport, colon, rest = text.partition(":")
    if not colon or transport not in _TRANSPORTS:
        return ImageArgument("registry", text, Reference.parse(text, default_registry), None, None)
    path, _, name = rest.partition(":")
    shown = _shown(text)
    if not path:
        raise UsageError(f'"{shown}": the path is missing', hint=f"write {transport}:PATH or {transport}:PATH:NAME")
    if "\0" in path:
        raise UsageError(f'"{shown}": a path cannot hold a NUL character')
    if path == "-" and transport == "oci":
        raise UsageError(f'"{shown}": a layout folder cannot be read from standard input', hint="use oci-archive:-")
    return ImageArgument(transport, text, None, path, name or None)


def _refuse_look_alikes(text: str) -> None:
    """Refuses what is not a reference at all, before any of it is parsed."""
    if not text.strip():
        raise UsageError("invalid reference: it is empty", hint="name an image, like ubuntu:22.04")
    _refuse_login(text)
    if text != text.strip():
        raise _bad(text, "there is white space around it", f'write "{_shown(text.strip())}"')
    scheme, separator, rest = text.partition("://")
    if separator and scheme != "docker":
        raise _bad(text, f'"{_shown(scheme)}://" does not belong in it', f'write "{_shown(rest)}"')
    if _IMAGE_ID.fullmatch(text):
        raise _bad(text, "it looks like an image id", "put the repository before it: REPOSITORY@sha256:…")
    transport, _, rest = text.partition(":")
    first, slash, _ = rest.partition("/")
    if transport in (*_TRANSPORTS, *_FOREIGN_TRANSPORTS) and (":" in first or (slash and not first.isdecimal())):
        known = ", ".join(f"{x}:" for x in _TRANSPORTS)
        raise _bad(text, f'"{transport}:" is not a registry', f"only pull reads local images, through {known}")
    strange = next((letter for letter in text if not letter.isascii()), None)
    if strange is not None:
        raise _bad(text, f'"{_shown(strange)}" ({_letter(strange)}) is not an ASCII letter or digit')


def _refuse_login(text: str) -> None:
    """Refuses ``user:password@host``; what stands before the last @ is never shown unless a digest follows it."""
    _, at, tail = text.rpartition("@")
    if not at or _LIKE_DIGEST.fullmatch(tail):
        return
    if "/" in tail or ":" in text.removeprefix("docker://").rpartition("@")[0]:
        raise UsageError(
            f'invalid reference "…@{_shown(tail)}": what follows the @ is not a digest, and a user name or password '
            "does not belong there",
            hint="log in with `docker login` or `podman login`, or use --creds-stdin",
        )


def _parse_digest(text: str, name: str, digest: str) -> Digest:
    if "@" in digest:
        raise _bad(text, "it holds more than one @")
    head, colon, tag = digest.rpartition(":")
    if colon and ":" in head:
        raise _bad(text, "the tag goes before the digest, not after it", f'write "{_shown(f"{name}:{tag}@{head}")}"')
    try:
        return Digest.parse(digest)
    except InvalidDigest as error:
        raise _bad(text, str(error), "write it like @sha256: and 64 digits of 0-9 and a-f") from None


def _split_tag(text: str, name: str) -> tuple[str, str | None]:
    head, colon, tag = name.rpartition(":")
    # A colon before the last slash, or inside an IPv6 host, belongs to the host.
    if not colon or "/" in tag:
        return name, None
    if "/" not in head:
        if name.startswith("["):
            raise _bad(text, "the repository is missing after the host", f'write "{_shown(name)}/REPOSITORY"')
        if ":" in head:
            raise _bad(text, "it holds too many colons", "write NAME:TAG; an IPv6 address goes in brackets")
    if not tag:
        raise _bad(text, "the tag is empty", 'leave out the ":" for the tag latest')
    if not TAG.fullmatch(tag):
        raise _bad(
            text,
            f'"{_shown(tag)}" is not a valid tag',
            "a tag has 1 to 128 letters, digits, _ . and -, and does not begin with . or -",
        )
    return head, tag


def _split_host(text: str, name: str, default_registry: str) -> tuple[str, str]:
    first, slash, rest = name.partition("/")
    if not slash or not _names_host(first):
        return _at_default(name, default_registry)
    _check_host(text, first, rest)
    if not rest:
        raise _bad(text, "the repository is missing after the host", f'write "{_shown(first)}/REPOSITORY"')
    return _official(first, rest)


def _names_host(first: str) -> bool:
    """Whether the part before the first slash is a host and not the first part of a repository."""
    return "." in first or ":" in first or first == "localhost" or first != first.lower()


def split_default(default_registry: str) -> tuple[str, str]:
    """Host of a default registry, and the path below it ("" for none); raises UsageError."""
    host, _, prefix = default_registry.partition("/")
    if not _names_host(host) or not _HOST.fullmatch(host):
        hint = "write it like registry.example.com, or with a port like registry:5000"
        raise UsageError(f'the default registry "{_shown(default_registry)}" is not a host', hint=hint)
    return host, prefix.rstrip("/")


def _at_default(repository: str, default_registry: str) -> tuple[str, str]:
    host, prefix = split_default(default_registry)
    return _official(host, f"{prefix}/{repository}" if prefix else repository)


def _official(host: str, repository: str) -> tuple[str, str]:
    """Docker Hub has one canonical host, and its official images a first part that people leave out."""
    if host == "index.docker.io":
        host = DEFAULT_REGISTRY
    if host == DEFAULT_REGISTRY and "/" not in repository:
        repository = f"library/{repository}"
    return host, repository


def _check_host(text: str, host: str, rest: str) -> None:
    if host.count(":") > 1 and not host.startswith("["):
        raise _bad(text, "an IPv6 address needs brackets", f'write "[ADDRESS]:PORT/{_shown(rest)}"')
    match = _HOST.fullmatch(host)
    if match is None:
        if host.startswith("[") and "%" in host:
            raise _bad(text, f'"{_shown(host)}" has a zone (after %), which a reference cannot hold')
        raise _bad(text, f'"{_shown(host)}" is not a valid host')
    if match["port"] is not None and not (len(match["port"]) <= 5 and 1 <= int(match["port"]) <= 65535):
        raise _bad(text, f"port {match['port'][:20]} is not between 1 and 65535")
    if match["address"] is not None and not _is_ipv6(match["address"]):
        raise _bad(text, f'"{_shown(host)}" does not hold an IPv6 address')


def _is_ipv6(text: str) -> bool:
    # Few references need this module, and it takes its time to load.
    import ipaddress

    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


def _check_repository(text: str, repository: str) -> None:
    if len(repository) > _MAX_REPOSITORY:
        raise _bad(text, f"the repository has {len(repository)} characters, {_MAX_REPOSITORY} are allowed")
    for component in repository.split("/"):
        if not component:
            raise _bad(text, "a part of the repository is empty (one / too many)")
        if _COMPONENT.fullmatch(component):
            continue
        if _COMPONENT.fullmatch(component.lower()):
            raise _bad(text, f'"{component}" must be lower-case', f'write "{component.lower()}"')
        raise _bad(
            text,
            f'"{_shown(component)}" is not a valid part of a repository name',
            "it is made of a-z and 0-9, with single . or _, double __ or any number of - between them",
        )


def _bad(text: str, what: str, hint: str | None = None) -> UsageError:
    return UsageError(f'invalid reference "{_shown(text)}": {what}', hint=hint)


def _shown(text: str) -> str:
    return in_ascii(text, _MAX_SHOWN)


def _letter(letter: str) -> str:
    """The name of a letter that may look like another one."""
    import unicodedata

    return unicodedata.name(letter, f"U+{ord(letter):04X}")
