"""Images that reach for what lies beside them: the breakout suites of containerd, moby and umoci, and what we added.

Keys name the suite and the case in it. A value is the image's layers, bottom first, each a list of entries.
"""

from __future__ import annotations

from tests.support.archive import directory, hardlink, hdr, pax, reg, symlink, xattr

Image = list[list[bytes]]
# Nothing of this name may appear outside a layer.
TOKEN = b"msb-pull-escaped"
# umoci's TestUnpackEntrySanitiseScoping: ways to say the root of the host.
_ROOTS = {
    "Root": b"/",
    "DotDot": b"..",
    "RootDotDot": b"/../",
    "ManyDotDots": b"../" * 12,
    "Mixed": b"/./.././../",
}


def hostile(relative: bytes, absolute: bytes) -> dict[str, Image]:
    """``relative`` leads from a layer's directory to the victim, ``absolute`` is its path on the host.

    The victim holds a file ``hello`` and an empty directory ``void``.
    """
    return {
        **_containerd(relative, absolute),
        **_moby(relative, absolute),
        **_umoci(absolute),
        **_ours(relative, absolute),
    }


def _containerd(relative: bytes, absolute: bytes) -> dict[str, Image]:
    up, file = relative, TOKEN
    hello = absolute + b"/hello"
    etc = [directory(b"etc"), reg(b"etc/passwd", b"all right")]
    one = {
        "SymlinkAbsolute": [*etc, symlink(b"localetc", absolute), reg(b"localetc/" + file)],
        "SymlinkUpAndOut": [*etc, symlink(b"dummy/localetc", b"../" * 9 + absolute), reg(b"dummy/localetc/" + file)],
        "SymlinkMultipleAbsolute": [
            *(*etc, directory(b"dummy"), symlink(b"dummy/etc", b"/etc"), symlink(b"etc/x", absolute)),
            *(symlink(b"localetc", b"/dummy/etc/x"), reg(b"localetc/" + file)),
        ],
        "SymlinkMultipleRelative": [
            *(*etc, symlink(b"up", b".."), symlink(b"upup", b"up/.."), symlink(b"out", b"upup/" + up)),
            reg(b"out/" + file),
        ],
        "SymlinkEmptyFile": [*etc, symlink(b"localetc", hello), reg(b"localetc", b"")],
        "HardlinkRelative": [*etc, directory(b"breakouts"), hardlink(b"breakouts/h", up + b"/hello")],
        "HardlinkDownAndOut": [*etc, hardlink(b"breakouts/h", b"downandout/../" + up + b"/hello")],
        "HardlinkAbsolute": [*etc, symlink(b"localetc", absolute), hardlink(b"h", b"/localetc/hello")],
        "HardlinkDirectRelative": [*etc, hardlink(b"h", b"../" * 12 + hello.lstrip(b"/"))],
        "HardlinkDirectAbsolute": [*etc, hardlink(b"h", hello)],
        "HardlinkSymlinkBeforeCreateTarget": [
            *(hardlink(b"h", b"localetc/hello"), symlink(b"localetc", absolute), *etc),
        ],
        "HardlinkSymlinkRelative": [*etc, symlink(b"s", up + b"/hello"), hardlink(b"h", b"s"), reg(b"h", b"new")],
        "HardlinkSymlinkAbsolute": [*etc, symlink(b"s", hello), hardlink(b"h", b"s")],
        "HardlinkSymlinkChmod": [*etc, symlink(b"s", hello), hardlink(b"h", b"s", mode=0o7777, uid=5, mtime=1)],
        "SymlinkParentDirectory": [*etc, symlink(b"d", up), directory(b"d/void", mode=0o7777, mtime=1)],
        "SymlinkOverridePath": [
            *(directory(b"foo"), symlink(b"foo", absolute), reg(b"foo/" + file), directory(b"foo"), reg(b"foo/x")),
        ],
        "SymlinkOverrideDirectory": [directory(b"x"), reg(b"x/y"), symlink(b"x", absolute), reg(b"x/" + file)],
        "DirectoryOverrideSymlink": [symlink(b"x", absolute), directory(b"x", mode=0o7777, mtime=1), reg(b"x/hello")],
        "DirectoryOverrideRelativeSymlink": [symlink(b"x", up), directory(b"x", mode=0o7777), reg(b"x/hello", b"1")],
        "DirectoryOverrideSymlinkAndHardlink": [
            *(symlink(b"x", up), hardlink(b"y", b"x"), directory(b"x"), directory(b"y"), reg(b"y/hello", b"1")),
        ],
        "WhiteoutRootParent": [*etc, reg(b".wh...")],
        "WhiteoutParent": [*etc, reg(b"etc/.wh...")],
        "WhiteoutRoot": [*etc, reg(b".wh..")],
        "WhiteoutCurrentDirectory": [*etc, reg(b"etc/.wh..")],
        "WhiteoutSymlink": [*etc, symlink(b"localetc", absolute), reg(b".wh.localetc")],
        "WhiteoutSymlinkPath": [*etc, symlink(b"localetc", absolute), reg(b"localetc/.wh.hello")],
        "WhiteoutDirectoryName": [*etc, reg(b".wh.etc/" + file)],
        "WhiteoutDeadSymlinkParent": [*etc, symlink(b"dead", absolute + b"/none"), reg(b"dead/.wh.hello")],
        "WhiteoutRelativePath": [*etc, reg(b"dne/../.wh.etc"), reg(up + b"/.wh.hello")],
    }
    return {f"containerd {name}": [entries] for name, entries in one.items()}


def _moby(relative: bytes, absolute: bytes) -> dict[str, Image]:
    up, loophole = relative, b"loophole-victim"
    one = {
        "UntarInvalidFilenames dotdot": [reg(up + b"/dotdot")],
        "UntarInvalidFilenames slash-dotdot": [reg(b"/" + up + b"/slash-dotdot")],
        "UntarParentTraversalContained": [reg(b"a/b/../../../" + up + b"/hello", b"new")],
        "UntarSymlinkBreakout": [
            *(directory(b"dir"), symlink(b"dir/go_up", b".."), symlink(b"dir/escape", b"go_up/" + up)),
            reg(b"dir/escape/" + TOKEN),
        ],
        "UntarSiblingPrefixContained": [symlink(b"d", up + b"-evil"), reg(b"d/" + TOKEN), reg(b"d/hello")],
        "UntarAbsoluteHardlink": [hardlink(b"h", absolute + b"/hello")],
        "UntarHardlinkToSymlink": [
            *(symlink(b"symlink1", absolute + b"/hello"), hardlink(b"hardlink", b"symlink1"), reg(b"symlink1", b"x")),
        ],
        "UntarInvalidHardlink dotdot": [hardlink(b"dotdot", up + b"/hello")],
        "UntarInvalidHardlink slash-dotdot": [hardlink(b"slash-dotdot", b"/" + up + b"/hello")],
        "UntarInvalidHardlink write": [hardlink(loophole, up), reg(loophole + b"/file")],
        "UntarInvalidHardlink read": [hardlink(loophole, up), symlink(b"symlink", loophole + b"/hello")],
        "UntarInvalidHardlink read hardlink": [hardlink(loophole, up), hardlink(b"h", loophole + b"/hello")],
        "UntarInvalidHardlink remove": [hardlink(loophole, up), reg(loophole)],
        "UntarInvalidSymlink write": [symlink(loophole, up), reg(loophole + b"/file")],
        "UntarInvalidSymlink read symlink": [symlink(loophole, up), symlink(b"symlink", loophole + b"/hello")],
        "UntarInvalidSymlink read hardlink": [symlink(loophole, up), hardlink(b"h", loophole + b"/hello")],
        "UntarInvalidSymlink remove": [symlink(loophole, up), reg(loophole)],
        "UntarInvalidSymlink path": [
            *(directory(b"dir"), symlink(b"dir/loophole", b"../" + up), reg(b"dir/loophole/newdir/newfile")),
        ],
        "ApplyLayerWhiteouts": [
            *(symlink(loophole, up), reg(loophole + b"/.wh.hello"), reg(loophole + b"/.wh..wh..opq")),
            reg(b"./.wh." + loophole),
        ],
        "ApplyLayer plnk": [
            *(symlink(b".wh..wh.plnk", up), hardlink(b"h", b".wh..wh.plnk/hello"), reg(b".wh..wh.plnk/hello", b"1")),
        ],
    }
    return {f"moby {name}": [entries] for name, entries in one.items()}


def _umoci(absolute: bytes) -> dict[str, Image]:
    found: dict[str, Image] = {}
    for name, root in _ROOTS.items():
        out = root + absolute if not root.endswith(b"/") else root + absolute.lstrip(b"/")
        found[f"umoci SanitiseScoping {name}"] = [
            [
                *(symlink(b"link", out), reg(b"link/" + TOKEN), directory(b"link/void", mode=0, mtime=1)),
                *(symlink(b"link/s", b"x"), hardlink(b"link/h", b"link/" + TOKEN), hdr(b"link/p", typ=b"6")),
            ]
        ]
        found[f"umoci ParentDir {name}"] = [[reg(out + b"/" + TOKEN), directory(out + b"/void", mode=0, mtime=1)]]
        found[f"umoci Hardlink {name}"] = [[hardlink(b"h", out + b"/hello"), hardlink(b"h", out)]]
    found["umoci NonDirParent"] = [[reg(b"nondir"), symlink(b"nondir", absolute), reg(b"nondir/" + TOKEN)]]
    found["umoci RootIsNoDirectory"] = [[symlink(b"./", absolute), reg(TOKEN)]]
    return found


def _ours(relative: bytes, absolute: bytes) -> dict[str, Image]:
    hello = absolute + b"/hello"
    below = [symlink(b"a", absolute), symlink(b"b", relative), symlink(b"h", hello), directory(b"d")]
    loud = xattr(b"user.k", b"v")
    sparse = (b"GNU.sparse.name", relative + b"/" + TOKEN), (b"GNU.sparse.map", b"0,1"), (b"GNU.sparse.size", b"1")
    layers: dict[str, Image] = {
        "metadata through symlinks": [
            [
                *(symlink(b"s", hello), loud, hdr(b"s/.", mode=0o7777), symlink(b"t", absolute), loud),
                *(directory(b"t/void", uid=3, mode=0o7777, mtime=1), loud, directory(b"t/.", uid=3, mtime=1)),
            ]
        ],
        "long names": [[pax((b"path", relative + b"/" + TOKEN)) + reg(b"f")]],
        "long targets": [
            [pax((b"linkpath", hello)) + symlink(b"s", b"x"), pax((b"linkpath", hello)) + hardlink(b"h", b"x")]
        ],
        "sparse name": [[pax(*sparse) + reg(b"f", b"x")]],
        "a chain of forty": [
            [
                *(symlink(b"l%d" % i, b"l%d" % (i + 1)) for i in range(39)),
                *(symlink(b"l39", absolute), reg(b"l0/" + TOKEN)),
            ]
        ],
        "a loop": [[symlink(b"a", b"b"), symlink(b"b", b"a"), reg(b"a/" + TOKEN)]],
        "directories that become symlinks": [
            [
                *(
                    directory(b"d"),
                    reg(b"d/f"),
                    symlink(b"d", absolute),
                    reg(b"d/void/" + TOKEN),
                    reg(b"d/hello", b"1"),
                ),
                directory(b"d/void"),
            ]
        ],
        "parent through a lower symlink": [below, [reg(b"a/" + TOKEN), reg(b"a/void/x"), reg(b"b/" + TOKEN)]],
        "facts of a lower symlink": [below, [reg(b"a/void/f"), reg(b"h/f")]],
        "link through a lower symlink": [below, [hardlink(b"x", b"a/hello")]],
        "link through a lower relative symlink": [below, [hardlink(b"x", b"b/hello")]],
        "link to a lower symlink": [below, [hardlink(b"x", b"h"), reg(b"d/f")]],
        "whiteout through a lower symlink": [below, [reg(b"a/.wh.hello"), reg(b"b/.wh..wh..opq"), reg(b".wh.d")]],
        "contents that move onto a lower symlink": [
            [symlink(b"lib", b"usr/lib"), symlink(b"usr", absolute)],
            [reg(b"lib/" + TOKEN), reg(b"usr/x"), hardlink(b"lib/h", b"lib/" + TOKEN)],
        ],
    }
    return {f"ours {name}": image for name, image in layers.items()}
