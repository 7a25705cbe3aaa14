"""A file system that loses what was not synced, for tests: FUSE, all of it in memory but for the platter, a directory beside it.

A file's bytes reach the platter with fsync of the file, a directory's names with fsync of the directory, in the order in which they
changed. Killing this process is a power cut that loses all the rest. Looking up one of these names in the root does more:

    .cut.SEED      a power cut: some of what was not synced has reached the platter all the same, sector by sector, the changes of a
                   directory in their order up to some place; what that is, is drawn from the seed
    .eio           the next fsync of a file that was synced before fails with EIO, and what it was to write is taken for clean: a
                   later fsync succeeds and does not write it (as Linux does it)
    .lie           from now on every fsync says that it succeeded and does nothing
"""

import errno
import json
import os
import pathlib
import random
import stat
import sys
import time

import mfusepy

SECTOR = 512
ROOT = 1


class Node:
    """A file or a directory, as the processes that use it see it, and what of it the platter lacks."""

    def __init__(self, mode):
        self.mode = mode
        self.changed_ns = time.time_ns()
        self.data = bytearray()
        self.dirty = []
        self.names = {}
        self.journal = []
        self.synced = False

    def is_directory(self):
        return stat.S_ISDIR(self.mode)


class Platter:
    """What survives: a file of bytes for each file, and of names for each directory, by the number of the node."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.folder.mkdir(exist_ok=True)

    def load(self):
        nodes = {ROOT: Node(stat.S_IFDIR | 0o755)}
        waiting = [ROOT]
        while waiting:
            number = waiting.pop()
            for name, (child, mode) in self.names(number).items():
                node = Node(mode)
                nodes[number].names[name] = child
                nodes[child] = node
                node.synced = True
                if node.is_directory():
                    waiting.append(child)
                elif self.path(child).exists():
                    node.data = bytearray(self.path(child).read_bytes())
        return nodes

    def path(self, number):
        return self.folder / str(number)

    def names(self, number):
        path = self.folder / f"{number}.names"
        return json.loads(path.read_text()) if path.exists() else {}

    def change(self, number, journal):
        """Makes changes of a directory's names: (name, what it is now, or None)."""
        names = self.names(number)
        for changes in journal:
            for name, now in changes:
                if now is None:
                    names.pop(name, None)
                else:
                    names[name] = now
        fresh = self.folder / "fresh"
        fresh.write_text(json.dumps(names))
        fresh.rename(self.folder / f"{number}.names")

    def write(self, number, size, pieces):
        """Gives a file its size, where there is one to give, and writes pieces: (offset, bytes)."""
        fd = os.open(self.path(number), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if size is not None:
                os.ftruncate(fd, size)
            for at, piece in pieces:
                os.pwrite(fd, piece, at)
        finally:
            os.close(fd)


class Lossy(mfusepy.Operations):
    use_ns = True

    def __init__(self, platter, allocates):
        self.platter = Platter(platter)
        self.nodes = self.platter.load()
        self.next = max([*self.nodes, *(int(path.name.split(".")[0]) for path in self.platter.folder.iterdir())]) + 1
        self.allocates = allocates
        self.fails = False
        self.lies = False

    # Finding things.

    def number(self, path):
        number = ROOT
        for name in path.split("/"):
            if name:
                number = self.nodes[number].names.get(name)
                if number is None:
                    raise mfusepy.FuseOSError(errno.ENOENT)
        return number

    def parent(self, path):
        folder, name = path.rsplit("/", 1)
        return self.number(folder), name

    def node(self, path, handle=None):
        return self.nodes[handle if handle else self.number(path)]

    def getattr(self, path, fh=None):
        if path.startswith("/."):
            self.command(path)
        number = fh if fh else self.number(path)
        node = self.nodes[number]
        size = 0 if node.is_directory() else len(node.data)
        return {
            "st_mode": node.mode,
            "st_ino": number,
            "st_nlink": 2 if node.is_directory() else 1,
            "st_uid": os.getuid(),
            "st_gid": os.getgid(),
            "st_size": size,
            "st_blocks": (size + SECTOR - 1) // SECTOR,
            "st_mtime": node.changed_ns,
            "st_ctime": node.changed_ns,
            "st_atime": node.changed_ns,
        }

    def statfs(self, path):
        return {"f_bsize": 4096, "f_frsize": 4096, "f_blocks": 1 << 22, "f_bfree": 1 << 22, "f_bavail": 1 << 22,
                "f_files": 1 << 20, "f_ffree": 1 << 20, "f_namemax": 255}

    def readdir(self, path, fh):
        return [".", "..", *self.node(path).names]

    # What changes names.

    def rename_in(self, number, changes):
        folder = self.nodes[number]
        for name, now in changes:
            if now is None:
                folder.names.pop(name, None)
            else:
                folder.names[name] = now[0]
        folder.journal.append(changes)

    def make(self, path, mode):
        folder, name = self.parent(path)
        if name in self.nodes[folder].names:
            raise mfusepy.FuseOSError(errno.EEXIST)
        number, self.next = self.next, self.next + 1
        self.nodes[number] = Node(mode)
        self.rename_in(folder, [(name, (number, mode))])
        return number

    def create(self, path, mode, fi=None):
        return self.make(path, stat.S_IFREG | stat.S_IMODE(mode))

    def mkdir(self, path, mode):
        self.make(path, stat.S_IFDIR | stat.S_IMODE(mode))
        return 0

    def unlink(self, path):
        self.number(path)
        folder, name = self.parent(path)
        self.rename_in(folder, [(name, None)])
        return 0

    def rmdir(self, path):
        if self.node(path).names:
            raise mfusepy.FuseOSError(errno.ENOTEMPTY)
        return self.unlink(path)

    def rename(self, old, new):
        number = self.number(old)
        (source, before), (target, after) = self.parent(old), self.parent(new)
        if source != target:
            raise mfusepy.FuseOSError(errno.EXDEV)
        self.rename_in(source, [(after, (number, self.nodes[number].mode)), (before, None)])
        return 0

    def fsyncdir(self, path, datasync, fh):
        if self.lies:
            return 0
        number = self.number(path)
        journal, self.nodes[number].journal = self.nodes[number].journal, []
        self.platter.change(number, journal)
        return 0

    # What changes bytes.

    def open(self, path, flags):
        return self.number(path)

    def read(self, path, size, offset, fh):
        return bytes(self.nodes[fh].data[offset : offset + size])

    def write(self, path, data, offset, fh):
        node = self.nodes[fh]
        self.grow(node, offset)
        node.data[offset : offset + len(data)] = data
        node.dirty.append((offset, offset + len(data)))
        node.changed_ns = time.time_ns()
        return len(data)

    def grow(self, node, size):
        if len(node.data) < size:
            node.data.extend(bytes(size - len(node.data)))

    def truncate(self, path, length, fh=None):
        node = self.node(path, fh)
        del node.data[length:]
        self.grow(node, length)
        node.dirty = [(start, min(end, length)) for start, end in node.dirty if start < length]
        node.changed_ns = time.time_ns()
        return 0

    def fallocate(self, path, mode, offset, size, fh):
        if mode or not self.allocates:
            raise mfusepy.FuseOSError(errno.EOPNOTSUPP)
        self.grow(self.nodes[fh], offset + size)
        return 0

    def fsync(self, path, datasync, fh):
        if self.lies:
            return 0
        node = self.nodes[fh]
        if self.fails and node.synced and node.dirty:
            self.fails = False
            node.dirty = []
            raise mfusepy.FuseOSError(errno.EIO)
        self.platter.write(fh, len(node.data), [(start, node.data[start:end]) for start, end in node.dirty])
        node.dirty = []
        node.synced = True
        return 0

    def chmod(self, path, mode, fh=None):
        return 0

    def chown(self, path, uid, gid, fh=None):
        return 0

    def utimens(self, path, times=None, fh=None):
        return 0

    # What a test asks for.

    def command(self, path):
        word, _, seed = path[2:].partition(".")
        if word == "eio":
            self.fails = True
        elif word == "lie":
            self.lies = True
        elif word == "cut":
            self.cut(random.Random(seed))

    def cut(self, chance):
        for number, node in self.nodes.items():
            if node.journal:
                self.platter.change(number, node.journal[: chance.randint(0, len(node.journal))])
            if node.dirty:
                share = chance.choice([0.0, 0.5, 0.9, 1.0])
                pieces = []
                for start, end in node.dirty:
                    while start < end:
                        next_sector = min(end, start - start % SECTOR + SECTOR)
                        if chance.random() < share:
                            pieces.append((start, node.data[start:next_sector]))
                        start = next_sector
                self.platter.write(number, len(node.data) if chance.random() < 0.5 else None, pieces)
        os._exit(0)


if __name__ == "__main__":
    platter, mount, allocates = sys.argv[1:]
    mfusepy.FUSE(Lossy(platter, allocates == "allocates"), mount, foreground=True, nothreads=True, hard_remove=True)
