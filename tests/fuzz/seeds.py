"""Where the corpus began: archives, streams and texts from literals. `run.py` adds them to every run."""

from __future__ import annotations

import gzip
import json
import sys

from tests.fuzz.tars import PIECES, REPAIR, SMALL_BUFFER
from tests.support.archive import END, directory, hardlink, hdr, pax, reg, symlink, xattr

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_D = "sha256:" + "ab" * 32


def seeds(target: str) -> list[bytes]:
    return _MAKERS[target]()


def _archives() -> list[bytes]:
    gnu = hdr(b"g", typ=b"S", size=4)
    gnu = gnu[:386] + b"%011o\0%011o\0" % (512, 4) + gnu[410:483] + b"%011o\0" % 1024 + gnu[495:]
    one = ((b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.name", b"s"))
    bodies = [
        reg(b"a", b"x" * 600),
        directory(b"d/") + reg(b"d/f", b"1") + hardlink(b"h", b"d/f") + symlink(b"s", b"d"),
        xattr(b"user.k", b"v") + reg(b"k"),
        hdr(b"c", typ=b"3", major=1, minor=3) + hdr(b"p", typ=b"6") + hdr(b"b", typ=b"4", major=7),
        reg(b"././@LongLink", b"n" * 150 + b"\0", typ=b"L") + reg(b"n", b"long"),
        reg(b"././@LongLink", b"t" * 150 + b"\0", typ=b"K") + symlink(b"l", b"t"),
        pax((b"path", b"p/" * 60), (b"size", b"3"), (b"mtime", b"1.5"), (b"uid", b"7")) + reg(b"p", b"abc"),
        pax((b"linkpath", b"far")) + symlink(b"l", b"near"),
        gnu + b"data" + bytes(508),
        pax(*one, (b"GNU.sparse.realsize", b"600")) + reg(b"x", b"1\n512\n3\n".ljust(512, b"\0") + b"abc"),
        pax((b"GNU.sparse.map", b"1,2"), (b"GNU.sparse.size", b"9")) + reg(b"m", b"ab"),
        pax((b"GNU.sparse.map", b"0,2,1,2"), (b"GNU.sparse.size", b"9")) + reg(b"overlapping", b"abcd"),
        pax((b"GNU.sparse.map", b"4,2,0,2"), (b"GNU.sparse.size", b"9")) + reg(b"unsorted", b"abcd"),
        hdr(b"g", typ=b"g", size=0) + reg(b"after", b"global"),
        hdr(b".wh.a") + directory(b"a") + reg(b"a/.wh..wh..opq"),
        reg(b"s/t", b"1") + symlink(b"s", b"/b") + reg(b"s/u", b"2") + hardlink(b"z", b"y") + reg(b"y", b"3"),
        reg(b".wh..wh.plnk/1.2", b"pl") + hardlink(b"q", b".wh..wh.plnk/1.2"),
        hdr(b"big", uid=1 << 31, mtime=-1, mode=0o7777),
    ]
    tails = [END, b"", bytes(512), END + b"garbage"]
    return [
        bytes([flags]) + body + tails[number % 4]
        for number, body in enumerate(bodies)
        for flags in (REPAIR, PIECES | SMALL_BUFFER | REPAIR)
    ]


def _gzips() -> list[bytes]:
    plans = [
        b"\x01\x03abc",
        b"\x01\x03abc\x02\x02de",
        b"\x01\x03abc\xf0\x05-----",
        b"\x01\x01a\xf8\x02zz",
        b"\x3f\xc3abc",
    ]
    plans += [bytes([kind, 5]) + b"abcde" for kind in range(0, 256, 7)]
    # More than fits into three pieces.
    plans += [bytes([kind, 0xFF]) + bytes(range(63)) for kind in (0, 1, 0xC3)]
    raw = gzip.compress(b"hello" * 9, mtime=0)
    return [*(b"\x01" + x for x in plans), *(b"\x00" + x for x in (raw, raw * 2, raw[:-3], raw + bytes(9), raw + b"x"))]


def _zstds() -> list[bytes]:
    plans = [b"\x01\x03abc\xe1\x02xx\x02\x02de", b"\xe0\x00", b"\x01\x03abc\xf8\x02zz"]
    plans += [bytes([kind, 5]) + b"abcde" for kind in range(0, 256, 5)]
    plans += [bytes([kind, 0xFF]) + bytes(range(63)) for kind in (0, 0x33)]
    raw = zstd.compress(b"hello" * 9)
    lying = b"\x28\xb5\x2f\xfd\x20\x2d\x01\x00\x00" + raw
    return [
        *(b"\x01" + x for x in plans),
        *(b"\x00" + x for x in (raw, raw * 2, raw[:-3], raw + b"x", raw + bytes(4), lying)),
    ]


def _plains() -> list[bytes]:
    heads = [
        b"ustar",
        b"BZh9",
        b"\xfd7zXZ\0",
        b"\x1f\x8b\x08",
        b"\x28\xb5\x2f\xfd",
        b"\x50\x2a\x4d\x18\x01\0\0\0x",
        b"",
    ]
    return [b"\x02" + head for head in heads]


def _documents() -> list[bytes]:
    layer = {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": _D, "size": 9, "urls": ["u"]}
    layer |= {
        "annotations": {"a": "b"},
        "data": "YWJj",
        "platform": {"os": "linux", "architecture": "arm", "variant": "v7"},
    }
    config = layer | {"mediaType": "application/vnd.oci.image.config.v1+json"}
    image = {"schemaVersion": 2, "config": config, "layers": [layer, layer], "artifactType": "x"}
    index = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [layer]}
    settings = {"architecture": "arm", "os": "linux", "config": {"Env": ["A=b"]}, "rootfs": {"diff_ids": [_D]}}
    odd = [
        b"[]",
        b"{}",
        b"null",
        b'{"a":1,"a":2}',
        b"NaN",
        b'{"a":"\\ud800"}',
        b"[" * 99,
        b'{"schemaVersion":1}',
        b"1e999",
    ]
    whole = [json.dumps(x).encode() for x in (image, index, settings)]
    return [bytes([how]) + x for how in (0, 2, 1, 24, 5) for x in (*whole, *odd)]


def _references() -> list[bytes]:
    texts = [
        "ubuntu",
        "ubuntu:22.04",
        f"a/b@{_D}",
        f"h:5000/a/b:t@{_D}",
        "[::1]:80/x",
        "docker://q/w",
        "oci:d:t",
        "oci-archive:-",
    ]
    texts += [
        "docker-archive:f:a/b:c",
        "user:pw@host/x",
        "localhost/a",
        "A.b/c",
        "a//b",
        "a__b/c-d.e:T",
        "é",
        "http://x",
        "-",
        " ",
    ]
    return [x.encode() for x in texts]


def _challenges() -> list[bytes]:
    return [
        b'Bearer realm="https://a/t",service="s",scope="repository:a/b:pull"',
        b'Basic realm="x", Bearer realm="y\\"z" , error=invalid_token',
        b"Negotiate abc==, Basic",
        b'Digest qop="auth,auth-int", =, "',
        b"Bearer\nBasic realm = a",
    ]


_MAKERS = {
    "tar": _archives,
    "layer": _archives,
    "gzip": _gzips,
    "zstd": _zstds,
    "plain": _plains,
    "documents": _documents,
    "references": _references,
    "challenges": _challenges,
}
