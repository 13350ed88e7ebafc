"""Which image of a folder or an archive is meant, and under which name it is recorded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from msb_pull.ground.errors import NotFoundError, UsageError
from msb_pull.image.reference import TAG, Reference

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_ENDINGS = (".gz", ".tgz", ".zst", ".bz2", ".xz", ".tar", ".oci")
_MAX_SHOWN = 120

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Named(Generic[T]):
    """Something and what it is called: as its file says (``words``) and in full where that can be read as a name."""

    item: T
    words: tuple[str, ...]
    reference: Reference | None


def read_name(word: str, folder: str | None) -> Reference | None:
    """A name from a file as a reference, None where it is not one.

    ``alpine:3`` and ``quay.io/a/b`` are what they are on the command line. skopeo writes ``oci:DIR:3.11`` as the bare
    tag ``3.11``, which becomes ``localhost/DIR:3.11`` (as podman names what comes from no registry); without a folder
    it is not a name.
    """
    try:
        if not TAG.fullmatch(word):
            return Reference.parse(word)
        return Reference.parse(f"localhost/{folder.lower()}:{word}") if folder else None
    except UsageError:
        return None


def stem(path: str) -> str:
    """The name of an archive without its endings."""
    name = path.rpartition("/")[2]
    while ending := next((x for x in _ENDINGS if name.endswith(x)), None):
        name = name.removesuffix(ending)
    return name


def matching(images: Sequence[Named[T]], wanted: str) -> list[Named[T]]:
    """The images that ``wanted`` means: by the very word, else by the name it stands for, else by their tag alone."""
    full = read_name(wanted, None)
    ways: tuple[Callable[[Named[T]], bool], ...] = (
        lambda image: wanted in image.words,
        lambda image: full is not None and image.reference == full,
        lambda image: image.reference is not None and image.reference.tag == wanted,
    )
    return next((found for way in ways if (found := [image for image in images if way(image)])), [])


def not_found(label: str, wanted: str, images: Sequence[Named[T]]) -> NotFoundError:
    """Says that there is no image of this name, and which there are."""
    return NotFoundError(f"{label}: it has no image {wanted!r}", cause=f"it holds {listed(images)}")


def ambiguous(label: str, images: Sequence[Named[T]]) -> UsageError:
    """Says that one of several images must be chosen."""
    hint = "choose one by a tag or name after the path, like PATH:NAME"
    return UsageError(f"{label}: it holds several images", cause=listed(images), hint=hint)


def listed(images: Sequence[Named[T]]) -> str:
    """What the images are called, at most twenty of them."""
    words = sorted({word[:_MAX_SHOWN] for image in images for word in image.words})
    unnamed = sum(not image.words for image in images)
    if unnamed:
        words.append(f"{unnamed} without a name")
    return ", ".join(words[:20]) + (f" and {len(words) - 20} more" if len(words) > 20 else "") or "no image"


def recorded_name(label: str, given: str | None, images: Sequence[Named[T]]) -> Reference:
    """What to record an image under: ``given`` (``--as``), else the one name it carries.

    ``images`` are the entries that were found, all of one image. Raises UsageError where it has no name or several.
    """
    if given is not None:
        return Reference.parse(given)
    names = {str(image.reference): image.reference for image in images if image.reference is not None}
    if len(names) == 1:
        return next(iter(names.values()))
    if names:
        hint = "choose one after the path, like PATH:NAME, or give it another with --as NAME"
        raise UsageError(f"{label}: it has several names", cause=", ".join(sorted(names)[:20]), hint=hint)
    words = listed(images)
    cause = f"its name there is not a valid image name: {words}" if any(x.words for x in images) else None
    raise UsageError(f"{label}: the image has no name", cause=cause, hint="give it a name with --as NAME")
