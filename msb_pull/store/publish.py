"""Gives finished layers their names, by rename alone, and takes directories out of sight before they are removed."""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING

from msb_pull.ground.remove import remove_tree
from msb_pull.store import swap
from msb_pull.store.paths import LayerState

if TYPE_CHECKING:
    from pathlib import Path

    from msb_pull.store.paths import Name, Paths
    from msb_pull.store.staging import Places, Staging


def publish(paths: Paths, places: Places, staging: Staging, layer: Name, *, replace: bool, sync: bool) -> Path:
    """What :meth:`Store.publish` describes; with ``sync`` everything is flushed to the device, files before names."""
    paths.refuse_symlink(layer)
    state = paths.layer_state(layer)
    if sync:
        swap.flush(staging.path.parent)
    if state is LayerState.ABSENT:
        _place_new(paths, places, staging, layer)
    elif replace or state is LayerState.FOREIGN:
        _swap_in(paths, places, staging, layer)
    paths.make_link(layer)
    if sync:
        swap.flush(paths.layers, paths.own / "records", paths.own / "l")
    return paths.layer_dir(layer)


def trash(places: Places, path: Path) -> None:
    """What :meth:`Store.trash` describes."""
    with places.private("trash") as place:
        try:
            try:
                swap.rename(path, place)
            except PermissionError:
                # To move a directory is to write its "..", and other programs leave them as their image had them.
                path.chmod(0o700)
                swap.rename(path, place)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            # Overlay file systems move no directory that lies in a layer below.
            remove_tree(path)


def _place_new(paths: Paths, places: Places, staging: Staging, layer: Name) -> None:
    # The record and notes stand before the directory does, so it is complete from its first moment.
    _place_record(paths, staging, layer)
    try:
        swap.rename(staging.path, paths.layer_dir(layer))
    except OSError:
        # Another program was faster: what it made must not pass for ours.
        os.replace(paths.notes_path(layer), staging.notes)
        os.replace(paths.record_path(layer), staging.record)
        with contextlib.suppress(FileNotFoundError):
            os.replace(paths.kept_path(layer), staging.kept)
        if paths.layer_state(layer) is not LayerState.FOREIGN:
            raise
        _swap_in(paths, places, staging, layer)


def _swap_in(paths: Paths, places: Places, staging: Staging, layer: Name) -> None:
    final = paths.layer_dir(layer)
    # Notes of one directory must never stand beside another, so for this while the layer counts as missing.
    notes, former = paths.notes_path(layer), staging.path.with_name("former notes")
    if noted := notes.exists():
        os.replace(notes, former)
    made = os.stat(staging.path)
    try:
        swap.exchange(staging.path, final, aside=staging.path.with_name("aside"))
    except OSError as error:
        if error.errno != errno.EXDEV:
            if noted:
                os.replace(former, notes)
            raise
        trash(places, final)
        swap.rename(staging.path, final)
    # XFS counts the new ".." of an exchanged directory as a change of the directory.
    os.utime(final, ns=(made.st_atime_ns, made.st_mtime_ns))
    _place_record(paths, staging, layer)


def _place_record(paths: Paths, staging: Staging, layer: Name) -> None:
    """Notes last: with them the layer counts as complete."""
    kept = paths.kept_path(layer)
    if kept.exists():
        os.replace(kept, staging.kept.with_name("former kept"))
    if staging.kept.exists():
        os.replace(staging.kept, kept)
    for made, place in (staging.record, paths.record_path(layer)), (staging.notes, paths.notes_path(layer)):
        try:
            os.replace(made, place)
        except IsADirectoryError:
            os.replace(place, made.with_name(f"former {made.name}"))
            os.replace(made, place)
