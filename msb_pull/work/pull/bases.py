"""Which of the directories that one blob may have in the store each position of an image gets, and its publication.

A layer whose archive describes everything in it looks the same on every base. Others take facts from the layers below
(what a directory looks like that the archive only implies, what a hard link leads to), so that the same blob has
several forms. The first form to be made has the digest as its name; every other one is named for the base that it was
made on as well, and is used at the positions that have exactly this base, and nowhere else. A layer that was not
downloaded but made from another one never has the digest alone as its name.

An image may list a blob twice, and its positions are two bases. Microsandbox knows one directory for each digest, the
one with the plain name, and stacks it where the image lists the layer last. The plain name goes to the first position,
though, so Microsandbox may show the facts of a wrong base there. It cannot move to the last position: by the time that
the form for that one is known, other images may rely on the plain name.
"""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING

from msb_pull.ground.errors import ContentError, local_error
from msb_pull.image.digest import chain_id
from msb_pull.layer.notes import Notes
from msb_pull.layer.proof.standing import belongs_on
from msb_pull.layer.settle.settle import settle
from msb_pull.layer.tree.kept import keep_aside
from msb_pull.store.index.keys import LayerKey
from msb_pull.work.claims import contradicts
from msb_pull.work.pull.placing import Placing, State
from msb_pull.work.pull.plan import WantedLayer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from msb_pull.ground.limits import Limits
    from msb_pull.ground.running import Job
    from msb_pull.image.digest import Digest
    from msb_pull.layer.settle.settle import Settled
    from msb_pull.source.interface import ResolvedImage, Source
    from msb_pull.store.store import Store
    from msb_pull.work.pull.plan import PullOptions


class Bases:
    """The layers of one image by position, bottom first; for the main thread, but for :meth:`key_for`.

    ``stack`` holds the same object at several positions where one directory is right for all of them. ``keys`` name
    the layers, position by position, where that is settled already: then nothing is decided.
    """

    def __init__(
        self, resolved: ResolvedImage, store: Store, options: PullOptions, keys: Sequence[LayerKey] = ()
    ) -> None:
        self._store = store
        self._options = options
        self._keys = keys
        self._wanted = list(map(WantedLayer, resolved.manifest.layers, resolved.config.diff_ids))
        self._diff_ids = {wanted.descriptor.digest: wanted.diff_id for wanted in self._wanted}
        # One more than there are layers.
        self._chains = list(accumulate(map(str, resolved.config.diff_ids), chain_id, initial=""))
        known: dict[LayerKey, Placing] = {}
        self.stack: list[Placing] = []
        for position, wanted in enumerate(self._wanted):
            key = keys[position] if keys else self._first_choice(position)
            if key not in known:
                state = State.PRESENT if self.is_there(key) else State.MISSING
                known[key] = Placing(wanted, position, self._chains[position], key, state)
            self.stack.append(known[key])

    def missing(self) -> list[Placing]:
        """What can be fetched at once: of each digest the lowest form that is missing.

        The others of the digest must wait for it, since one lock and one partial download serve all of them.
        """
        found: dict[Digest, Placing] = {}
        for placing in self.stack:
            if placing.state is State.MISSING:
                found.setdefault(placing.digest, placing)
        return list(found.values())

    def is_there(self, key: LayerKey) -> bool:
        """Whether a layer need not be fetched; callable from any thread."""
        options = self._options
        if options.force or str(key) in options.refetch or not self._store.has_layer(key):
            return False
        # Another image may have lied of the blob: then it is fetched, and what it is decides.
        return bool(self._keys) or not contradicts(self._store, key, self._diff_ids[key.digest])

    def has_come(self, placing: Placing) -> bool:
        """Whether a layer that was missing is there by now, and if so, under its own name, which it then gets.

        For the thread that has its lock.
        """
        own = LayerKey.on(placing.digest, placing.chain)
        if not self._keys and self.is_there(own):
            placing.key = own
        return self.is_there(placing.key)

    def fits(self, position: int) -> bool:
        """Whether the complete layer at a position belongs on top of those below it there.

        Raises FileNotFoundError when another process is just swapping it for a new one, or its record is lost.
        """
        placing, chain = self.stack[position], self._chains[position]
        if self._keys or (placing.position == position and placing.state is State.PUBLISHED):
            return True
        if placing.key.variant:
            return placing.key == LayerKey.on(placing.digest, chain)
        try:
            notes = Notes.load(self._store.notes_path(placing.key))
            if notes.chain == chain or not notes.derived:
                return True
            return belongs_on(self._store.record_path(placing.key), notes, self.lowers(position))
        except ContentError:
            # Nothing can be said of a damaged one, and this image can do without it.
            return False

    def replace(self, position: int) -> Placing:
        """Puts a form of its own, still to be made, at a position that shows what another base has."""
        wanted, chain = self._wanted[position], self._chains[position]
        key = LayerKey.on(wanted.descriptor.digest, chain)
        self.stack[position] = Placing(wanted, position, chain, key, State.MISSING)
        return self.stack[position]

    def lowers(self, position: int) -> list[Path]:
        """The directories of the layers below a position, nearest first; they must have been placed."""
        return [self._store.layer_dir(placing.key) for placing in reversed(self.stack[:position])]

    def key_for(self, placing: Placing, settled: Settled) -> LayerKey:
        """The name of a layer that was just settled: the plain one, unless another form has that, or none may have it.

        For the thread that publishes the layer.
        """
        if self._keys:
            return placing.key
        if placing.reused:
            # Microsandbox takes what has the plain name for the blob, and that it is the blob, only this image says. Of
            # a layer made from another form of the same blob as well: that one may have been made in this way itself.
            return LayerKey.on(placing.digest, placing.chain)
        plain = LayerKey(placing.digest)
        if not self._store.has_layer(plain) or contradicts(self._store, plain, placing.wanted.diff_id):
            free = not settled.derived or not self._is_another_ones(plain, placing)
            return plain if free else LayerKey.on(placing.digest, placing.chain)
        try:
            notes = Notes.load(self._store.notes_path(plain))
        except ContentError:
            return plain
        same = notes.chain == placing.chain or notes.derived == settled.derived
        return plain if same else LayerKey.on(placing.digest, placing.chain)

    def _is_another_ones(self, plain: LayerKey, placing: Placing) -> bool:
        """Whether an image that is recorded has this form on another base; its directory may be lost, or damaged.

        What is put there for this base would pass for the other image's, which a later pull would find complete. An
        image that says something else of the blob has no right to it.
        """
        if not self._store.has_images:
            return False
        with self._store.database(create=False) as database:
            images = [image for image in database.images() if image.digest is not None]
        for image in images:
            chains = accumulate((str(layer.diff_id) for layer in image.layers), chain_id, initial="")
            for layer, below in zip(image.layers, chains, strict=False):
                if layer.key == plain and layer.diff_id == placing.wanted.diff_id and below != placing.chain:
                    return True
        return False

    def _first_choice(self, position: int) -> LayerKey:
        """The form that was made on this very base, if there is one, else the plain one, which may be right as well."""
        digest = self._wanted[position].descriptor.digest
        own = LayerKey.on(digest, self._chains[position])
        return own if self.is_there(own) else LayerKey(digest)


class Publisher:
    """Ends the way of the layers of one image: each is settled on those below, gets its notes, and its name."""

    def __init__(self, store: Store, source: Source, bases: Bases, limits: Limits, image: str, job: Job) -> None:
        self._store = store
        self._source = source
        self._bases = bases
        self._limits = limits
        self._image = image
        self._job = job

    def publish(self, placing: Placing) -> None:
        """Publishes a layer that was fetched and whose lock is held, and gives up the lock.

        A thread of the pool calls it for a layer that takes nothing from those below, which need not be there then;
        for others the main thread does. Raises ContentError, LocalError.
        """
        try:
            self._publish(placing)
        except OSError as error:
            # While staging is there: once it is gone, what is free says nothing of why the disk was full.
            raise local_error(error, self._store.layers) from error

    def _publish(self, placing: Placing) -> None:
        fetched = placing.fetched
        assert fetched is not None
        report, staging = fetched.report, fetched.staging
        lowers = self._bases.lowers(placing.position) if report.needs_lowers else ()
        settled = settle(staging.path, report, lowers, max_bytes=self._limits.max_bytes)
        placing.key = self._bases.key_for(placing, settled)
        diff_id = str(placing.wanted.diff_id)
        notes = Notes.of(report, settled.derived, diff_id=diff_id, tar_bytes=fetched.tar_bytes, chain=placing.chain)
        notes.save(staging.notes)
        short = f"layer {placing.digest.short}"
        self._job.log(self._image, f"{short}: unpacked under {report.jailed}")
        kept = keep_aside(staging.path, staging.kept)
        for warning in (*report.warnings, *settled.warnings, *kept):
            self._job.warn(self._image, f"{short}: {warning}")
        self._store.publish(staging, placing.key, replace=True)
        if self._source.remote:
            self._store.partial_path(placing.digest).unlink(missing_ok=True)
        placing.state = State.PUBLISHED
        placing.unlock()
