"""Files that are damaged, foreign or gone in a finished store."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from .harness import Tally, World, issue

KINDS = (".safetensors", ".mp4", ".trace.json", ".fidelity.json", "latency.json", "record", ".ledger.json")


def _flip(data: bytes, part: float) -> bytes:
    at = min(int(len(data) * part), len(data) - 1)
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def _foreign_json(path: Path) -> None:
    path.write_text(json.dumps({"another": ["program's", 1]}))


def _folder(path: Path) -> None:
    path.unlink()
    (path / "inside").mkdir(parents=True)


def _other_file(path: Path) -> None:
    """The content of a file of the same kind, of another sample."""
    others = [each for each in path.parent.parent.parent.rglob(f"*{''.join(path.suffixes)}") if each.is_file()]
    others = [each for each in others if each.read_bytes() != path.read_bytes() and not each.name.startswith(".")]
    path.write_bytes(others[0].read_bytes() if others else b"[]")


def _same_stat(path: Path) -> None:
    """A bit flips, and size and time of the file are as before."""
    status = path.stat()
    path.write_bytes(_flip(path.read_bytes(), 0.5))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def _dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


DAMAGE: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "a bit flipped early": lambda path: path.write_bytes(_flip(path.read_bytes(), 0.05)),
    "a bit flipped late": lambda path: path.write_bytes(_flip(path.read_bytes(), 0.95)),
    "a bit flipped, same size and time": _same_stat,
    "gone": lambda path: path.unlink(),
    "JSON of another shape": _foreign_json,
    "another sample's": _other_file,
    "a folder": _folder,
    "a link to nowhere": _dangling,
}
SELF_MADE = {"record", ".ledger.json"}  # made from the samples whenever they differ
NOT_DAMAGED = {"gone", "a link to nowhere"}  # nothing is there: made again without a word


def files_of(store: Path, kind: str) -> list[Path]:
    """The files of a kind, in order."""
    pattern = "records/*/*/*.json" if kind == "record" else f"samples/*/*/*/*{kind}"
    return sorted(path for path in store.glob(pattern) if kind == ".ledger.json" or not path.name.startswith("."))


def each(world: World, kinds: tuple[str, ...] = KINDS, names: tuple[str, ...] = tuple(DAMAGE)) -> Iterator[Tally]:
    """Every damage to the first and the last file of every kind, one at a time."""
    for name in names:
        tally = Tally(f"damage: {name}")
        for kind in kinds:
            for victim in (0, -1):
                store = world.copy()
                path = files_of(store, kind)[victim]
                noticed = name not in NOT_DAMAGED and kind not in SELF_MADE
                DAMAGE[name](path)
                tally.injected += 1
                code, said = issue(store)
                if noticed and "set aside" not in said:
                    tally.wrong(f"{name}, {kind}: nothing was said")
                world.judge(tally, store, code, said, f"{name}, {kind}")
                yield tally
