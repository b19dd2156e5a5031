"""Projections to W&B, their offline files read back, and as much of a W&B server as a run needs."""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from . import projections

ROOT = Path(__file__).parents[1]
BLOCK, HEADER = 32768, struct.Struct("<IHB")  # LevelDB's log: blocks of records with checksum, length and kind
FIRST, LAST, WHOLE = 2, 4, 1
TABLES = ("per_sample.path", "records.path")
MEDIA = ("per_sample", "records", "videos")


def messages(path: Path) -> Iterator[bytes]:
    """The records of a .wandb file, after its header of seven bytes."""
    data, at, parts = path.read_bytes(), 7, b""
    while at + HEADER.size <= len(data):
        if (left := BLOCK - at % BLOCK) < HEADER.size:
            at += left
            continue
        _, length, kind = HEADER.unpack_from(data, at)
        body = data[at + HEADER.size : at + HEADER.size + length]
        at += HEADER.size + length
        parts = body if kind in (WHOLE, FIRST) else parts + body
        if kind in (WHOLE, LAST):
            yield parts


def read_run(folder: Path) -> dict[str, Any]:
    """The config, summary, id and group of an offline run; its tables by name and videos by caption."""
    from wandb.proto import wandb_internal_pb2 as protocol

    found: dict[str, Any] = {"config": {}, "summary": {}}
    for message in messages(next(folder.glob("*.wandb"))):
        record = protocol.Record.FromString(message)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found |= {"id": record.run.run_id, "group": record.run.run_group}
            found["config"] |= _values(record.run.config.update)
        elif kind == "config":
            found["config"] |= _values(record.config.update)
        elif kind == "summary":
            found["summary"] |= _values(record.summary.update)
    found["config"].pop("_wandb", None)
    media = {name: value for name, value in found["summary"].items() if name.split(".")[0] in MEDIA}
    found["summary"] = {n: v for n, v in found["summary"].items() if n not in media and not n.startswith("_")}
    files = folder / "files"
    found["tables"] = {n.split(".")[0]: json.loads((files / media[n]).read_text()) for n in media if n in TABLES}
    found["videos"] = {each["caption"]: files / each["path"] for each in media.get("videos.videos", [])}
    return found


def _values(items: Any) -> dict[str, Any]:
    """By name, the names of nested values joined by points."""
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}


@contextmanager
def server(answers: bool = True) -> Iterator[tuple[str, dict[str, bytes]]]:
    """A server on this machine: its address, and the files that were uploaded to it, by run and name. One that does
    not answer takes every request and says nothing."""
    uploaded: dict[str, bytes] = {}
    silence = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _any(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            if not answers:
                silence.wait(120)
                return
            body = gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body
            if self.path.startswith("/upload/"):
                uploaded[self.path.removeprefix("/upload/")] = body
            address = f"http://127.0.0.1:{self.server.server_address[1]}/upload"
            data = _graphql(json.loads(body), address) if self.path == "/graphql" else {}
            text = json.dumps({"data": data}).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = do_PUT = _any  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listening.daemon_threads = True
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listening.server_address[1]}", uploaded
    finally:
        silence.set()
        listening.shutdown()
        listening.server_close()


def _graphql(asked: dict[str, Any], address: str) -> dict[str, Any]:
    """What wandb 0.31 needs to hear to go on."""
    told, entity = asked.get("variables") or {}, {"id": "e", "name": "e"}
    manifest = {"id": "m", "file": {"id": "f", "uploadUrl": f"{address}/manifest", "uploadHeaders": []}}

    def file(name: str, place: str) -> dict[str, Any]:
        return {"id": name, "name": name, "displayName": name, "uploadUrl": f"{address}/{place}", "uploadHeaders": []}

    match asked.get("operationName") or asked["query"].split("(")[0].split()[-1]:
        case "Viewer":
            return {"viewer": {"id": "u", "entity": "e", "username": "u", "flags": "{}", "teams": {"edges": []}}}
        case "RunResumeStatus":
            return {"model": None}
        case "UpsertBucket":
            project = {"id": "p", "name": "pcbench", "entity": entity}
            bucket = {"id": "b", "name": told["name"], "displayName": "", "config": "{}", "project": project}
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        case "CreateRunFiles":
            files = [file(name, f"{told['run']}/{name}") for name in told["files"]]
            return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}
        case "ArtifactType":
            return {"project": {"artifact": None}}
        case "CreateArtifact":
            sequence = {"id": "s", "latestArtifact": None}
            return {"createArtifact": {"artifact": {"id": "a", "state": "PENDING", "artifactSequence": sequence}}}
        case "CreateArtifactManifest":
            return {"createArtifactManifest": {"artifactManifest": manifest}}
        case "UpdateArtifactManifest":
            return {"updateArtifactManifest": {"artifactManifest": manifest}}
        case "CreateArtifactFiles":
            nodes = [
                file(each["name"], "artifact") | {"artifact": {"id": "a"}} for each in told["input"]["artifactFiles"]
            ]
            return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}
        case "CommitArtifact":
            return {"commitArtifact": {"artifact": {"id": "a", "digest": "d"}}}
    return {}


def environment(tmp_path: Path, **more: str) -> dict[str, str]:
    """Without a key: an empty home, no variable of W&B's."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    home = tmp_path / "home"
    home.mkdir(exist_ok=True)
    return plain | {"HOME": str(home), "NETRC": str(home / "none")} | more


def project(tmp_path: Path, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    env = environment(tmp_path, **more)
    if "PYTHONPATH" not in more and importlib.util.find_spec("wandb"):
        return projections.project(words, env, ROOT)
    command = [sys.executable, "-m", "pcbench.tracking", *words]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=200)


def runs_of(results: Path) -> dict[str, dict]:
    return {run["id"]: run for run in map(read_run, sorted((results / "wandb").glob("offline-run-*")))}
