"""Events of an invented pull."""

from __future__ import annotations

from msb_pull.ground import events as e

IMAGE = "docker.io/library/ubuntu:22.04"


def digest(number):
    return f"sha256:{number + 0x10:012x}{number:052x}"


def name(number):
    return digest(number)[7:19]


def planned(*sizes, present=()):
    layers = tuple(e.PlannedLayer(digest(i), size, i in present) for i, size in enumerate(sizes))
    return e.PullPlanned(IMAGE, "linux/amd64", layers)


def progress(number, done, total, phase=e.Phase.DOWNLOADING):
    return e.LayerProgress(IMAGE, digest(number), phase, done, total)
