"""Cut the power after every call that writes; see what a store holds of what was synced.

    python benchmarks/power_loss.py [--commands ingest compact] [--every 1] [--seeds 2]

strace (Debian's package) records what an ingest, or a compaction, does below its folder. A disk
may lose all that was not synced: the bytes of a file up to its last fsync, the names of a folder
up to the folder's. So after each call the folder is made again as a disk might hold it:

- `least`: only what was synced;
- `names`: every name, of the bytes only those that were synced;
- `some`: of the names and bytes that were not synced any part, drawn at random.

Each time the store must open or not be there yet, verify, and hold all of a source or nothing of
it: all, once the command had said that it was done. The same command made again must complete.
"""

import argparse
import random
import re
import shutil
import sys
import tempfile
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

from crash_points import Command, same

import tracelab as tl
from tracelab.exceptions import TracelabError

CALLS = (
    "openat,write,pwrite64,writev,rename,renameat,renameat2,link,linkat,unlink,unlinkat,fsync,"
    "fdatasync,mkdir,mkdirat,ftruncate,fallocate"
)
VARIANTS = ("least", "names", "some")
_NAMED = re.compile(r'"([^"]*)"')
_OPENED = re.compile(r"^\w+\(\d+<([^>]*)>")


@dataclass
class Disk:
    """Folders and files: what the system shows, and what the disk is sure to hold.

    Parameters
    ----------
    shown, sure : dict of str to int or None
        Inode by path; None for a folder.
    written, synced : dict of int to int
        Bytes of each inode.
    """

    shown: dict = field(default_factory=dict)
    sure: dict = field(default_factory=dict)
    written: dict = field(default_factory=dict)
    synced: dict = field(default_factory=dict)

    def create(self, path):
        """Make an empty file."""
        number = len(self.written)
        self.shown[path], self.written[number], self.synced[number] = number, 0, 0

    def sync(self, path):
        """Make a file's bytes, or a folder's names, sure."""
        number = self.shown.get(path)
        if number is not None:
            self.synced[number] = self.written[number]
            return
        for name in {*self.shown, *self.sure}:
            if str(Path(name).parent) == path:
                self._settle(name)

    def _settle(self, name):
        if name in self.shown:
            self.sure[name] = self.shown[name]
        else:
            self.sure.pop(name, None)


def replay(disk, line, place):
    """Apply a recorded call to the disk; tell whether it changed anything."""
    call = line.split("(", 1)[0]
    names = [name for name in _NAMED.findall(line) if name.startswith(place)]
    opened = _OPENED.match(line)
    if call == "openat":
        if "O_CREAT" not in line or not names or names[0] in disk.shown:
            return False
        disk.create(names[0])
    elif call.startswith("mkdir"):
        disk.shown[names[0]] = None
    elif call.startswith("link"):
        disk.shown[names[1]] = disk.shown[names[0]]
    elif call.startswith("unlink"):
        disk.shown.pop(names[0], None)
    elif call.startswith("rename"):
        disk.shown[names[1]] = disk.shown.pop(names[0])
    elif call in ("fsync", "fdatasync"):
        disk.sync(opened[1])
    elif call == "write":
        disk.written[disk.shown[opened[1]]] += int(line.rsplit("=", 1)[1])
    else:
        raise AssertionError(f"not modelled: {line}")
    return True


def record(command):
    """Run a command; return its calls below the folder, and the bytes of every file."""
    command.prepare()
    before = contents(command.place)
    command.run("-e", f"trace={CALLS}", "-s", "0")
    lines, main = [], None
    above = re.escape(str(command.place.parent))
    for line in (command.scratch / "calls").read_text(errors="replace").splitlines():
        number, rest = line.split(None, 1)
        main = main or number
        here = str(command.place) in rest or re.search(rf"sync\(\d+<{above}>", rest)
        if not here or "= -1" in rest:
            continue
        if number != main or "unfinished" in rest:
            raise AssertionError(f"cannot be put in order: {line}")
        lines.append(rest)
    return before, lines, contents(command.place)


def contents(place):
    """Return the bytes of each file below a folder; None for folders."""
    paths = [place, *place.rglob("*")] if place.exists() else []
    return {str(path): path.read_bytes() if path.is_file() else None for path in paths}


def lay(disk, data, place, variant, rng):
    """Make the folder as the disk may hold it."""
    shutil.rmtree(place, ignore_errors=True)
    names = dict(disk.sure if variant == "least" else disk.shown)
    if variant == "some":
        names = dict(disk.sure)
        for name in sorted({*disk.shown, *disk.sure}):
            if rng.random() < 0.5:
                names.pop(name, None)
                if name in disk.shown:
                    names[name] = disk.shown[name]
    for name in sorted(names):
        path = Path(name)
        if not path.parent.is_dir():
            continue  # a name below a folder that is lost is lost as well
        number = names[name]
        if number is None:
            path.mkdir(exist_ok=True)
            continue
        size = disk.synced[number]
        if variant == "some":
            size = rng.randint(size, disk.written[number])
        path.write_bytes(data.get(number, b"")[:size].ljust(size, b"\0"))


def cut(command, whole, *, done):
    """Look at what is left; return what is wrong, or None."""
    left = command.left()
    if done and (left is None or not same(left, whole)):
        return "said done, and is not"
    if not command.is_as_before(left) and not same(left, whole):
        return "half of it is there"
    again(command)
    if not same(command.left(), whole):
        return "made again, and differs"
    return None


def again(command):
    """Make the command again, in this process."""
    if command.name == "ingest":
        tl.TraceStore(command.place).ingest(command.export, workers=1)
    else:
        tl.TraceStore(command.place).compact(keep="0s")


def cut_all(name, scratch, *, every=1, seeds=1):
    """Cut the power after each call; return how many states were looked at, and what was wrong."""
    command = Command(name, scratch)
    before, lines, after = record(command)
    whole = command.left()
    disk = Disk()
    for path, content in before.items():
        if content is None:
            disk.shown[path] = None
        else:
            disk.create(path)
            number = disk.shown[path]
            disk.written[number] = disk.synced[number] = len(content)
    disk.sure = dict(disk.shown)
    held = {disk.shown[path]: data for path, data in before.items() if data is not None}
    place = str(command.place)
    changed = (deepcopy(disk) for line in lines if replay(disk, line, place))
    disks = [deepcopy(disk), *changed]
    held |= {disk.shown[path]: data for path, data in after.items() if data is not None}
    states, wrong = 0, []
    for number in sorted({*range(0, len(disks), every), len(disks) - 1}):
        for variant in VARIANTS:
            for seed in range(seeds if variant == "some" else 1):
                lay(disks[number], held, command.place, variant, random.Random(seed))
                states += 1
                try:
                    why = cut(command, whole, done=number == len(disks) - 1)
                except (AssertionError, TracelabError) as error:
                    why = str(error)
                if why:
                    wrong.append((name, number, variant, seed, why))
    return len(disks) - 1, states, wrong


def main():
    """Print calls, states and failures per command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = ("ingest", "compact")
    parser.add_argument("--commands", nargs="+", default=names, choices=names)
    parser.add_argument("--every", type=int, default=1, help="each so many-th call only")
    parser.add_argument("--seeds", type=int, default=2, help="draws of what is lost")
    arguments = parser.parse_args()
    failures = 0
    for name in arguments.commands:
        with tempfile.TemporaryDirectory() as folder:
            calls, states, wrong = cut_all(
                name, Path(folder), every=arguments.every, seeds=arguments.seeds
            )
        failures += len(wrong)
        print(f"{name}: {calls} calls, {states} states, {len(wrong)} wrong", flush=True)
        for each in wrong[:20]:
            print("  ", *each)
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
