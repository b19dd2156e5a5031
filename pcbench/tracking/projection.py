"""Writes entries to W&B; the only file that imports wandb."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..store import read_json, records, write_json
from ..store.claims import claim
from .entries import Entry, displayed, of_record, of_sweep

PROJECT = "pcbench"  # unless WANDB_PROJECT says otherwise
INIT_TIMEOUT = 15.0  # seconds, online, unless W&B's own WANDB_INIT_TIMEOUT says otherwise
FINISH_TIMEOUT = 300.0
PAUSE = 0.5  # seconds before it is looked again whether another process is done


class Projection:
    """Sends what has changed since the last time; if online fails, `mode` falls back to offline for good."""

    def __init__(self, mode: str, say: Callable[[str], None]) -> None:
        import wandb

        if not hasattr(wandb, "init"):
            raise ImportError("a folder called wandb is not the package")
        self.wandb, self.mode, self.say = wandb, mode, say

    def project(self, results: Path) -> int:
        """Bring W&B up to date with the records under `results`; returns how many runs were sent. If another process is
        doing so, as the sweep of another shard, this one comes after it, and sends what is left."""
        state_file = results / "wandb" / "projected.json"
        while True:
            with claim(state_file) as claimed:
                if claimed:
                    return self._project(results, state_file)
            time.sleep(PAUSE)

    def _project(self, results: Path, state_file: Path) -> int:
        sent = 0
        all_records = list(records(results))
        state = read_json(state_file) or {}
        for entry in [*(of_record(results, record) for record in all_records), of_sweep(results, all_records)]:
            digest, known = entry.digest, state.get(entry.id, {})
            *_, latest = [None, *_offline(results, entry.id)]
            synced = known.get("mode") == "online" or (latest is not None and _is_synced(latest))
            logged = synced or (self.mode == "offline" and latest is not None)
            if known.get("digest") == digest and logged:
                continue
            self._send(results, entry)
            state[entry.id] = {"digest": digest, "mode": self.mode}
            write_json(state_file, state)
            sent += 1
        return sent

    def _send(self, results: Path, entry: Entry) -> None:
        for stale in _offline(results, entry.id):
            if not _is_synced(stale):
                shutil.rmtree(stale)
        try:
            self._write(results, entry)
        except Exception as error:  # no key, no network, a refusal by the server: all are handled alike
            if self.mode == "offline":
                raise
            self.say(f"online failed ({first_line(error)}); offline instead")
            self.mode = "offline"
            self.wandb.teardown()
            self._write(results, entry)

    def _write(self, results: Path, entry: Entry) -> None:
        wandb = self.wandb
        run = wandb.init(
            id=entry.id, name=displayed(entry.name), group=displayed(entry.group), job_type=entry.job_type,
            tags=[displayed(tag, 64) for tag in entry.tags],
            config=entry.config, allow_val_change=True, resume="allow", mode=self.mode, dir=str(results),
            project=os.environ.get("WANDB_PROJECT", PROJECT), settings=_settings_of(wandb),
        )  # fmt: skip
        columns = list(dict.fromkeys(name for row in entry.table for name in row))
        table = wandb.Table(columns=columns, data=[[row.get(name) for name in columns] for row in entry.table])
        media = {"videos": [wandb.Video(str(path), caption=caption, format="mp4") for path, caption in entry.videos]}
        run.log({"records" if entry.job_type == "table" else "per_sample": table, **(media if entry.videos else {})})
        run.summary.update(entry.summary)
        run.finish()


def _settings_of(wandb: Any) -> Any:
    """Settings that keep W&B quiet, limit its time, and send no more about this machine than the record does."""
    wait = float(os.environ.get("WANDB_INIT_TIMEOUT", INIT_TIMEOUT))
    return wandb.Settings(
        silent=True, console="off", init_timeout=wait, finish_timeout=FINISH_TIMEOUT,
        finish_timeout_raises=True, disable_git=True, disable_code=True, x_disable_stats=True, x_disable_meta=True,
        x_disable_machine_info=True, x_save_requirements=False,
    )  # fmt: skip


def _offline(results: Path, identity: str) -> Iterator[Path]:
    """The folders of an offline run, the latest last."""
    yield from sorted((results / "wandb").glob(f"offline-run-*-{identity}"))


def _is_synced(folder: Path) -> bool:
    """Whether `wandb sync` has sent an offline run."""
    return any(folder.glob("*.synced"))


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type if the message is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
