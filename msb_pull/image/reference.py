"""References: how people and databases name images."""

from __future__ import annotations

import re
from dataclasses import dataclass

from msb_pull.errors import UsageError
from msb_pull.image.digest import Digest, InvalidDigest

DEFAULT_REGISTRY = "docker.io"

_LABEL = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_HOST = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[a-fA-F0-9:.]+\])(?::([0-9]{{1,5}}))?", re.ASCII)
_COMPONENT = re.compile(r"[a-z0-9]+(?:(?:\.|__|_|-+)[a-z0-9]+)*", re.ASCII)
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", re.ASCII)
_IMAGE_ID = re.compile(r"[a-f0-9]{64}", re.ASCII)
_MAX_REPOSITORY = 255
_TRANSPORTS = ("oci", "oci-archive", "docker-archive")


@dataclass(frozen=True, slots=True)
class Reference:
    """A registry host, a repository and a tag, a digest, or both (distribution/reference's grammar)."""

    registry: str
    repository: str
    tag: str | None
    digest: Digest | None

    @classmethod
    def parse(cls, text: str, default_registry: str = DEFAULT_REGISTRY) -> Reference:
        """Parses what a person types; ``docker://`` in front is accepted. Raises UsageError saying what is wrong."""
        _refuse_look_alikes(text)
        rest = text.removeprefix("docker://")
        name, at, digest_text = rest.partition("@")
        digest = _parse_digest(text, digest_text) if at else None
        name, tag = _split_tag(text, name)
        registry, repository = _split_host(text, name, default_registry)
        if not repository:
            raise _bad(text, "the repository is missing")
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

    def __str__(self) -> str:
        text = f"{self.registry}/{self.repository}"
        if self.tag:
            text += f":{self.tag}"
        return f"{text}@{self.digest}" if self.digest else text


@dataclass(frozen=True, slots=True)
class ImageArgument:
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

    As with skopeo, the path of a local source ends at its first colon. Raises UsageError.
    """
    transport, colon, rest = text.partition(":")
    if not colon or transport not in _TRANSPORTS:
        return ImageArgument("registry", text, Reference.parse(text, default_registry), None, None)
    path, _, name = rest.partition(":")
    if not path:
        raise UsageError(f'"{text}": the path is missing', hint=f"write {transport}:PATH or {transport}:PATH:NAME")
    if path == "-" and transport == "oci":
        raise UsageError(f'"{text}": a layout folder cannot be read from standard input', hint="use oci-archive:-")
    return ImageArgument(transport, text, None, path, name or None)


def _bad(text: str, what: str, hint: str | None = None) -> UsageError:
    shown = text.encode("unicode_escape").decode("ascii")
    return UsageError(f'invalid reference "{shown}": {what}', hint=hint)


def _refuse_look_alikes(text: str) -> None:
    if not text.strip():
        raise UsageError("invalid reference: it is empty")
    if text != text.strip():
        raise _bad(text, "there is white space around it")
    scheme, separator, rest = text.partition("://")
    if separator and scheme != "docker":
        if "@" in rest.partition("/")[0]:
            raise UsageError("invalid reference: a password does not belong in it", hint="use `docker login`")
        raise _bad(text, f'"{scheme}://" does not belong in it', f'remove "{scheme}://"')
    if _IMAGE_ID.fullmatch(text):
        raise _bad(text, "it looks like an image id", "name the repository; a digest follows it after @sha256:")
    head, at, tail = text.removeprefix("docker://").partition("@")
    if at and "/" in tail:
        # Whatever stands before the @ may hold a password: it is not shown.
        raise UsageError(
            'invalid reference: "@" before a "/" (a user name does not belong in a reference)',
            hint="log in with `docker login`",
        )
    if at and ":" in tail and tail.count(":") > 1 and "@" not in tail:
        raise _bad(text, "a tag stands before the digest, not after it")
    if not head:
        raise _bad(text, "the repository is missing")


def _parse_digest(text: str, digest: str) -> Digest:
    try:
        return Digest.parse(digest)
    except InvalidDigest as error:
        raise _bad(text, str(error)) from None


def _split_tag(text: str, name: str) -> tuple[str, str | None]:
    head, colon, tag = name.rpartition(":")
    # A colon before the last slash, or inside an IPv6 host, belongs to the host.
    if not colon or "/" in tag:
        return name, None
    if tag.endswith("]") or head.startswith("["):
        if "/" not in head:
            raise _bad(text, "the repository is missing after the host")
    elif ":" in head.partition("/")[0] and "/" not in head:
        raise _bad(text, "an IPv6 address needs brackets")
    if not tag:
        raise _bad(text, "the tag is empty")
    if not _TAG.fullmatch(tag):
        raise _bad(text, f'"{_shown(tag)}" is no valid tag (letters, digits, _ . -, at most 128, not led by . or -)')
    return head, tag


def _split_host(text: str, name: str, default_registry: str) -> tuple[str, str]:
    first, slash, rest = name.partition("/")
    is_host = slash and ("." in first or ":" in first or first == "localhost" or first != first.lower())
    if not is_host:
        repository = name
        if default_registry == DEFAULT_REGISTRY and "/" not in repository:
            repository = f"library/{repository}"
        return default_registry, repository
    match = _HOST.fullmatch(first)
    if first.count(":") > 1 and not first.startswith("["):
        raise _bad(text, "an IPv6 address needs brackets")
    if match is None:
        raise _bad(text, f'"{_shown(first)}" is no valid host')
    if match[1] is not None and not 1 <= int(match[1]) <= 65535:
        raise _bad(text, f"port {match[1]} is not between 1 and 65535")
    if first == "index.docker.io":
        first = DEFAULT_REGISTRY
    if first == DEFAULT_REGISTRY and "/" not in rest and rest:
        rest = f"library/{rest}"
    return first, rest


def _check_repository(text: str, repository: str) -> None:
    if len(repository) > _MAX_REPOSITORY + (len("library/") if repository.startswith("library/") else 0):
        raise _bad(text, f"the repository is longer than {_MAX_REPOSITORY} characters")
    for component in repository.split("/"):
        if not component:
            raise _bad(text, "a part of the repository is empty")
        if not _COMPONENT.fullmatch(component):
            if component.isascii() and component != component.lower():
                raise _bad(text, f'"{_shown(component)}" must be lower-case')
            raise _bad(text, f'"{_shown(component)}" is no valid part of a repository name')


def _shown(text: str) -> str:
    return text.encode("unicode_escape").decode("ascii")
