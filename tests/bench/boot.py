"""Boots exports of the rig's images in QEMU, and compares what the guest sees with the tree that umoci makes.

    python -m tests.bench.boot KERNEL.deb [--images debian python node traps] [--kinds ext4 erofs squashfs virtiofs 9p]
                               [--accel tcg|kvm] [--place FOLDER]

KERNEL.deb is a kernel of Debian, as ``apt-get download linux-image-6.1.0-57-cloud-amd64`` fetches it; the one without
``cloud`` has 9p too. The guest loads its modules from a small initramfs with busybox and GNU tar, mounts the export,
and writes all it sees as a tar on a second disk. Then the export becomes its root, and the image's own shell its first
process; on what can be written that makes a file. ``traps`` is the tests' image of known traps, which has no shell.

Wanted: root, the rig's layouts, umoci, GNU tar, qemu-system-x86, busybox-static, and e2fsck, tar2sqfs or QEMU's
virtiofsd. With ``tcg`` QEMU translates every instruction, and needs no /dev/kvm. Nothing is measured: any difference is
a fault. What is made lies below FOLDER for the time, up to five times the image.
"""

from __future__ import annotations

import argparse
import gzip
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from msb_pull import ExportOptions, Store
from tests.support.exports import NAME, all_facts, by_umoci, layout, real_layout, store_of, untarred
from tests.support.treecompare import describe, differences, walk

MODULES = ("virtio_pci", "virtio_blk", "virtiofs", "9p", "9pnet_virtio", "ext4", "erofs", "squashfs", "crc32c_generic")
DISKS = ("ext4", "erofs", "squashfs")
FOLDERS = {"virtiofs": "", "9p": "trans=virtio,version=9p2000.L,msize=512000,"}
WRITABLE = ("ext4", *FOLDERS)
TAR = "/usr/bin/tar --xattrs --xattrs-include=* --numeric-owner --format=posix -C /root -c ."
VIRTIOFSD = ("/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd")

INIT = """#!/bin/busybox sh
/bin/busybox mkdir -p /bin /dev /proc /sys /root
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev; mount -t proc proc /proc; mount -t sysfs sys /sys
for module in {modules}; do insmod /modules/$module.ko; done
mount -t {kind} -o {options} {device} /root && echo && echo "MOUNTED by $(uname -r)"
{tar} > /dev/{out} && echo SEEN
if [ -x /root/bin/sh ]; then
    mount -t proc proc /root/proc
    exec switch_root /root /bin/sh -c '
        . /etc/os-release; echo "BOOTED $NAME $VERSION_ID as process $$"
        echo written > /written && echo WRITTEN
        [ {kind} = ext4 ] && mount -o remount,ro /
        sync; echo DONE; echo b > /proc/sysrq-trigger; sleep 60'
fi
umount /root && echo DONE
echo b > /proc/sysrq-trigger
sleep 60
"""


# What the guest starts from


def entry(name: str, mode: int, content: bytes = b"") -> bytes:
    """A file of an initramfs: the "newc" format of cpio, as Linux has it in buffer-format.rst."""
    fields = (0, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08x" % field for field in fields) + name.encode() + b"\0"
    return b"".join(part + bytes(-len(part) % 4) for part in (head, content))


def in_order(modules: dict[str, Path]) -> list[str]:
    """Those that are wanted and what they need, each after what it needs, as their own .modinfo says."""
    order: list[str] = []

    def add(name: str) -> None:
        if name in order or name not in modules:
            return  # the kernel has it built in
        needed = re.search(rb"\0depends=([^\0]*)", modules[name].read_bytes())
        for other in needed[1].decode().split(",") if needed else ():
            add(other)
        order.append(name)

    for name in MODULES:
        add(name)
    return order


class Kernel:
    """A kernel of Debian's with its modules."""

    def __init__(self, package: Path, folder: Path) -> None:
        subprocess.run(["dpkg-deb", "-x", package, folder], check=True)
        self.image = next(folder.glob("boot/vmlinuz-*"))
        self._modules = {path.stem: path for path in folder.rglob("*.ko")}
        self._order = in_order(self._modules)

    def initramfs(self, init: str) -> bytes:
        """One that runs this script, in which ``{modules}`` stands for the modules to load."""
        tar = shutil.which("tar") or "/bin/tar"
        told = subprocess.run(["ldd", tar], capture_output=True, text=True, check=True).stdout
        files = {f"modules/{name}.ko": self._modules[name] for name in self._order}
        files |= {path.lstrip("/"): Path(path) for path in re.findall(r"(/\S+) \(", told)}
        files |= {"bin/busybox": Path("/bin/busybox"), "usr/bin/tar": Path(tar)}
        folders = sorted({str(above) for path in files for above in Path(path).parents} - {"."})
        parts = [entry(path, stat.S_IFDIR | 0o755) for path in folders]
        parts += [entry(path, stat.S_IFREG | 0o755, held.read_bytes()) for path, held in files.items()]
        parts.append(entry("init", stat.S_IFREG | 0o755, init.format(modules=" ".join(self._order)).encode()))
        return gzip.compress(b"".join(parts) + entry("TRAILER!!!", 0), 1)


# The machine


def shared(kind: str, folder: Path, place: Path) -> tuple[list[str], subprocess.Popen[bytes] | None]:
    """The words that give a guest a folder under the tag ``root``, and who serves it."""
    if kind == "9p":
        return ["-virtfs", f"local,path={folder},mount_tag=root,security_model=passthrough,multidevs=remap"], None
    socket = place / "virtiofs.sock"
    program = next(path for path in VIRTIOFSD if Path(path).exists())
    words = [program, f"--socket-path={socket}", "-o", f"source={folder},xattr,cache=auto"]
    server = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not socket.exists() and server.poll() is None:
        time.sleep(0.1)
    memory = ["-object", "memory-backend-memfd,id=mem,size=1G,share=on", "-numa", "node,memdev=mem"]
    device = ["-chardev", f"socket,id=fs,path={socket}", "-device", "vhost-user-fs-pci,chardev=fs,tag=root"]
    return [*memory, *device], server


def boot(kernel: Kernel, kind: str, export: Path, place: Path, options: argparse.Namespace) -> tuple[str, Path]:
    """Boots it; returns what the guest said, and the tar of what it saw."""
    seen = place / "seen.tar"
    with seen.open("wb") as out:
        out.truncate(8 << 30)
    access = "rw" if kind in WRITABLE else "ro"
    facts = {"kind": kind, "access": access, "tar": TAR, "modules": "{modules}"}
    facts["options"] = FOLDERS.get(kind, "") + access
    facts |= {"device": "root", "out": "vda"} if kind in FOLDERS else {"device": "/dev/vda", "out": "vdb"}
    initrd = place / "initrd"
    initrd.write_bytes(kernel.initramfs(INIT.format(**facts)))
    command = ["qemu-system-x86_64", "-M", "q35", "-accel", options.accel, "-cpu", "max", "-m", "1G", "-no-reboot"]
    command += ["-nographic", "-nodefaults", "-serial", "stdio", "-kernel", kernel.image]
    command += ["-initrd", initrd, "-append", "console=ttyS0 quiet panic=-1 no_timer_check"]
    words, server = shared(kind, export, place) if kind in FOLDERS else ([], None)
    if kind in DISKS:
        words = ["-drive", f"file={export},format=raw,if=virtio,readonly={'off' if access == 'rw' else 'on'}"]
    command += [*words, "-drive", f"file={seen},format=raw,if=virtio"]
    try:
        done = subprocess.run(command, capture_output=True, timeout=1800, stdin=subprocess.DEVNULL)
    finally:
        if server:
            server.terminate()
            server.wait()
    return (done.stdout + done.stderr).decode(errors="replace").replace("\r", ""), seen


# What is compared


def strict(root: Path) -> dict[bytes, tuple[int, ...]]:
    """What ``describe`` leaves out: owners of symlinks, and times of all names, to the second."""
    facts = {name: os.lstat(os.path.join(os.fsencode(root), name)) for name in walk(os.fsencode(root))}
    return {name: (one.st_uid, one.st_gid, one.st_mtime_ns // 10**9) for name, one in facts.items()}


def faults_of(kind: str, image: str, said: str, theirs: Path, ours: Path) -> list[str]:
    """One line for each difference of the two trees, and for each thing that the guest did not say."""
    wanted = ["MOUNTED", "SEEN", "DONE"] + ["BOOTED"] * (image != "traps")
    wanted += ["WRITTEN"] * (kind in WRITABLE and image != "traps")
    lines = [f"not said: {word}" for word in wanted if not re.search(rf"^{word}\b", said, re.MULTILINE)]
    lines += differences(describe(theirs), describe(ours))
    left, right = (all_facts if image == "traps" else strict)(theirs), (all_facts if image == "traps" else strict)(ours)
    lines += [
        f"{name!r}: {left.get(name)} and {right.get(name)}"
        for name in left | right
        if left.get(name) != right.get(name)
    ]
    return lines


def checked(kind: str, export: Path, image: str) -> list[str]:
    """What is wrong with what the guest has written to."""
    if image == "traps" or kind not in WRITABLE:
        return []
    if kind in FOLDERS:
        return [] if (export / "written").read_text() == "written\n" else ["the written file is not there"]
    check = subprocess.run(["e2fsck", "-fn", export], capture_output=True, text=True)
    show = subprocess.run(["debugfs", "-R", "cat /written", export], capture_output=True, text=True)
    lines = [] if show.stdout == "written\n" else ["the written file is not there"]
    return lines + ([] if check.returncode == 0 else [f"e2fsck: {check.stdout}"])


def tried(kernel: Kernel, store: Store, image: str, kind: str, theirs: Path, options: argparse.Namespace) -> bool:
    with tempfile.TemporaryDirectory(prefix="boot-", dir=options.place) as name:
        place = Path(name)
        export = place / ("folder" if kind in FOLDERS else f"disk.{kind}")
        store.export(NAME, export, ExportOptions(format="dir" if kind in FOLDERS else kind))
        said, tar = boot(kernel, kind, export, place, options)
        lines = faults_of(kind, image, said, theirs, untarred(tar, place / "seen")) + checked(kind, export, image)
    count = len(describe(theirs))
    heard = "; ".join(line for line in said.split("\n") if re.match("MOUNTED|BOOTED|WRITTEN", line))
    print(f"{image} {kind}: {count} names, {len(lines)} differences; {heard}", *lines[:20], sep="\n    ", flush=True)
    if lines:
        print(said, file=sys.stderr)
    return not lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path)
    parser.add_argument("--images", nargs="+", default=["traps", "debian"])
    parser.add_argument("--kinds", nargs="+", default=["ext4", "erofs"], choices=[*DISKS, *FOLDERS])
    parser.add_argument("--accel", default="tcg")
    parser.add_argument("--place", type=Path, default=tempfile.gettempdir())
    options = parser.parse_args()
    good = True
    with tempfile.TemporaryDirectory(prefix="boot-", dir=options.place) as name:
        place = Path(name)
        kernel = Kernel(options.package, place / "kernel")
        for image in options.images:
            source, tag = (layout(place / "traps"), "1") if image == "traps" else real_layout(image)
            store = store_of(place / f"home-{image}", (source, NAME))
            theirs = by_umoci(source, tag, place / "theirs")
            outcomes = [tried(kernel, store, image, kind, theirs, options) for kind in options.kinds]
            good = good and all(outcomes)
            shutil.rmtree(theirs)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
