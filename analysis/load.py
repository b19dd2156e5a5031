"""Records to data frames, by declared columns: one row per record or per sample; and which may share a table."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd

from pcbench.store import records

from .approaches import approach_of
from .metrics import Metric, metric_of

IDENTICAL_PSNR_1 = 100.0
NO_CACHE = "none"
REPLAY = "replay"  # a given schedule, which is no method
USUAL = 0.75  # share of a method's records above which a common value is not named


@dataclass(frozen=True)
class Column:
    """A column of a data frame: its name, and where in a record or sample its value is (keys joined by dots)."""

    name: str
    path: str

    def of(self, data: dict[str, Any]) -> Any:
        """The value; None if any key on the way is missing."""
        found: Any = data
        for part in self.path.split("."):
            found = found.get(part) if isinstance(found, dict) else None
        return found


# What identifies a record; also in every row of a sample.
IDENTITY = (
    Column("machine", "machine.name"),
    Column("model", "recipe.backbone.name"),
    Column("method", "recipe.method.name"),
    Column("id", "id"),
    Column("reference", "reference"),
)
# Seconds and ratios are of the timed calls of one sample; ratios are of calls timed in turn in one process.
EFFICIENCY = "speedup_over_macs_speedup"
TIMES = ("denoise_seconds", "reference_denoise_seconds", "decode_seconds", "speedup", EFFICIENCY)
SPREAD = ("median", "min", "max")
RECORD = (
    *IDENTITY,
    Column("family", "recipe.backbone.family"),
    Column("status", "status"),
    Column("error", "error"),
    *(Column(name, f"machine.{name}") for name in ("cpu", "gpu", "threads")),
    *(Column(name, f"recipe.sampling.{name}") for name in ("frames", "height", "width", "steps", "guidance_scale")),
    Column("dtype", "recipe.numerics.dtype"),
    Column("macs_peta_per_video", "macs.peta_per_video"),
    Column("macs_reference_peta_per_video", "macs.reference_peta_per_video"),
    Column("macs_speedup", "macs.speedup"),
    *(Column(f"{name}_{part}", f"latency.{name}.{part}") for name in TIMES for part in SPREAD),
    Column("text_seconds", "latency.text_seconds"),
    Column("timed_calls", "latency.repeats"),
    Column("attention", "latency.attention"),
    Column("peak_gpu_bytes", "latency.peak_gpu_bytes"),
    Column("reference_peak_gpu_bytes", "latency.reference_peak_gpu_bytes"),
    Column("offload", "latency.conditions.offload"),
)
SAMPLE = tuple(Column(name, name) for name in ("prompt", "seed", "steps", "computed", "partial", "macs", "seconds"))
TEXT = {"machine", "model", "method", "id", "reference", "family", "status", "error", "cpu", "gpu", "dtype",
        "attention", "offload", "prompt", "approach"}  # fmt: skip


def folders(results: Path) -> list[Path]:
    """Every folder with records in it, from `results` itself downwards; samples and hidden folders are not entered."""
    found = []
    for root, inner, _ in os.walk(results):
        if "records" in inner and next((Path(root) / "records").glob("*/*/*.json"), None):
            found.append(Path(root))
        inner[:] = sorted(name for name in inner if name not in {"records", "samples"} and not name.startswith("."))
    return found


def load_records(root: Path) -> pd.DataFrame:
    """One row per record of one folder: the columns of RECORD (missing: NaN or None), the method's `version` (raised
    when the same fields give other pixels), `fields` (a dict) and `approach` (approaches.py), the number of `samples`
    and of `timed_prompts`, and `overall_speedup_median`, `_min`, `_max`. MACs are in PMACs a video, latency in seconds.

    The overall speedup is for all the record's videos: the MACs' ratio times the timed calls' efficiency. A method that
    decides by its data may compute many more steps for another prompt than for the timed one, whose own speedup is
    used only where there is no video.
    """
    return _records_frame(list(records(root)))


def _records_frame(raw: list[dict[str, Any]]) -> pd.DataFrame:
    rows = [
        {column.name: column.of(record) for column in RECORD}
        | {"version": _version(record), "fields": _fields(record), "approach": approach_of(record)}
        | {"samples": len(record["samples"]), "timed_prompts": _timed_prompts(record)}
        for record in raw
    ]
    added = ("version", "fields", "approach", "samples", "timed_prompts")
    frame = _numeric(pd.DataFrame(rows, columns=[*(column.name for column in RECORD), *added]))
    for part in SPREAD:
        overall = frame["macs_speedup"] * frame[f"{EFFICIENCY}_{part}"]
        frame[f"overall_speedup_{part}"] = overall.fillna(frame[f"speedup_{part}"])
    return frame


def _timed_prompts(record: dict[str, Any]) -> int:
    """Number of timed prompts; older records were timed on one prompt and have no list."""
    return len(record["latency"].get("prompts", [None])) if record.get("latency") else 0


def _version(record: dict[str, Any]) -> int:
    return int(record["recipe"]["method"].get("version", 1))


def _fields(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record["recipe"]["method"].items() if name not in {"name", "version"}}


def _numeric(frame: pd.DataFrame) -> pd.DataFrame:
    """Missing numbers are NaN, whatever else is in the column."""
    numbers = [name for name in frame if name not in TEXT | {"fields"}]
    return frame.astype({name: float for name in numbers if frame[name].isna().any()})


def load_samples(root: Path) -> pd.DataFrame:
    """One row per sample: the columns of IDENTITY and SAMPLE, the method's `fields`, and each fidelity score.

    Records from before psnr@2 have psnr@1, which differs where a frame is identical to its reference: 100 dB there.
    Below 100 it is used as psnr@2, to which it is equal if every frame differs; at 100 the video has no PSNR.
    """
    return _samples_frame(list(records(root)))


def _samples_frame(raw: list[dict[str, Any]]) -> pd.DataFrame:
    rows = []
    for record in raw:
        identity = {column.name: column.of(record) for column in IDENTITY} | {"fields": _fields(record)}
        for sample in record["samples"]:
            scores = dict(sample["fidelity"])
            if scores.get("psnr@1", IDENTICAL_PSNR_1) < IDENTICAL_PSNR_1:
                scores.setdefault("psnr@2", scores["psnr@1"])
            rows.append(identity | {column.name: column.of(sample) for column in SAMPLE} | scores)
    names = [column.name for column in (*IDENTITY, *SAMPLE)]
    metrics = list(dict.fromkeys(name for row in rows for name in row if name not in {*names, "fields"}))
    return _numeric(pd.DataFrame(rows, columns=[*names, "fields", *metrics]))


@dataclass(frozen=True, eq=False)
class Bench:
    """What may share a table: one folder, one machine, one model, one uncached reference.

    experiment: the folder's name, with those between it and the results folder ("table1", "mine/first").
    records, samples: as `load_records` and `load_samples` give them, of this bench alone; `records` has a `label` for
        each: the method with the fields in which the bench's records of it differ.
    raw: the records themselves, in the order of `records`.
    """

    experiment: str
    root: Path
    machine: str
    model: str
    reference: str
    records: pd.DataFrame = field(repr=False)
    samples: pd.DataFrame = field(repr=False)
    raw: tuple[dict[str, Any], ...] = field(repr=False)

    @property
    def name(self) -> str:
        """The experiment without the folders above it: "table1"."""
        return PurePosixPath(self.experiment).name

    @property
    def title(self) -> str:
        """Model and sampling: "tiny_wan, 29×128×128, 50 steps"."""
        first = self.records.iloc[int((self.records["id"] == self.reference).argmax())]  # or the first record
        if pd.isna(first["frames"]):
            return self.model
        size = "×".join(f"{first[name]:.0f}" for name in ("frames", "height", "width"))
        return f"{self.model}, {size}, {first['steps']:.0f} steps"

    @property
    def heading(self) -> str:
        """The title and the machine."""
        return f"{self.title}; {self.machine}"

    @property
    def metrics(self) -> list[Metric]:
        """The metrics that any sample has a value of, by name; the latest of several versions."""
        scored = sorted(name for name in self.samples if "@" in str(name) and self.samples[name].notna().any())
        return [metric_of(name, self.raw) for name in {name.partition("@")[0]: name for name in scored}.values()]

    @property
    def uncached(self) -> dict[str, Any] | None:
        """The record of the reference, if it is there."""
        return next((record for record in self.raw if record["id"] == self.reference), None)


def benches(results: Path) -> list[Bench]:
    """Every bench under a results folder, by experiment, machine and model. Raises ValueError if there is none."""
    found = [bench for root in folders(results) for bench in _benches_of(root, results)]
    if not found:
        raise ValueError(f"no records under {results}")
    return found


def names_of(benches: Sequence[Bench]) -> list[str]:
    """A name for each bench of a figure: its model, with what tells it from the others if that is not enough."""
    forms = [
        (bench.model, bench.title, bench.heading, f"{bench.heading}; against {bench.reference}") for bench in benches
    ]
    counts = Counter(form for each in forms for form in dict.fromkeys(each))
    return [next((form for form in each if counts[form] == 1), each[-1]) for each in forms]


def one_bench(results: Path, model: str, machine: str | None = None) -> Bench:
    """The bench of a model in one folder. Raises ValueError if there is none, or more than one."""
    found = [each for each in _benches_of(results, results) if each.model == model and machine in (None, each.machine)]
    if not found:
        raise ValueError(f"no records of {model} under {results}")
    for what, names in (
        ("machines", [bench.machine for bench in found]),
        ("uncached references", [f"{bench.reference} ({bench.title})" for bench in found]),
    ):
        if len(set(names)) > 1:
            raise ValueError(f"records of several {what}: {', '.join(dict.fromkeys(names))}; they cannot be mixed")
    return found[0]


def file_names(experiments: Iterable[str]) -> dict[str, str]:
    """The names that the files of experiments begin with: "mine/first" is "mine-first". Raises ValueError if two have
    the same."""
    found: dict[str, str] = {}
    for experiment in dict.fromkeys(experiments):
        name = experiment.replace("/", "-")
        if name in found:
            raise ValueError(f"files of {found[name]} and {experiment} would have one name; rename one of the folders")
        found[name] = experiment
    return {experiment: name for name, experiment in found.items()}


def experiments(results: Path) -> dict[str, list[Bench]]:
    """The benches by the name of their experiment. Raises ValueError if there is none."""
    found: dict[str, list[Bench]] = {}
    for bench in benches(results):
        found.setdefault(bench.experiment, []).append(bench)
    return found


def _benches_of(root: Path, results: Path) -> Iterator[Bench]:
    raw = list(records(root))
    frame, samples = _records_frame(raw), _samples_frame(raw)
    name = results.resolve().name if root == results else root.relative_to(results).as_posix()
    for key, group in frame.groupby(["machine", "model", "reference"], sort=True):
        machine, model, reference = (str(part) for part in key)
        of_model = (samples["machine"] == machine) & (samples["model"] == model)
        bench_samples = samples[of_model & samples["id"].isin(group["id"])]
        bench_raw = tuple(raw[int(place)] for place in group.index)
        labelled = group.assign(label=labels(group)).reset_index(drop=True)
        yield Bench(name, root, machine, model, reference, labelled, bench_samples.reset_index(drop=True), bench_raw)


def labels(frame: pd.DataFrame) -> pd.Series:
    """A method's name, with the fields, or the version, in which records of that method differ.

    Values that over three quarters of them share are left out, and so are tables of numbers.
    """

    frame = frame if "version" in frame else frame.assign(version=1)

    peers_of: dict[str, list[dict[str, Any]]] = {}
    for method, fields, version in zip(frame["method"], frame["fields"], frame["version"], strict=True):
        peers_of.setdefault(method, []).append(fields | {"version": version})

    def label(row: pd.Series) -> str:
        peers = peers_of[row["method"]]
        fields = {name: value for name, value in row["fields"].items() if not _is_table(value)}
        fields["version"] = row["version"]
        shared = {name: sum(peer.get(name) == value for peer in peers) / len(peers) for name, value in fields.items()}
        varied = [name for name in fields if shared[name] <= USUAL]
        return " ".join([row["method"], *(f"{name}={fields[name]}" for name in varied)])

    return frame.apply(label, axis=1)


def _is_table(value: Any) -> bool:
    """Whether a field holds calibrated numbers: a polynomial, or ratios for every step."""
    longest = max(map(_length, value.values()), default=0) if isinstance(value, dict) else _length(value)
    return longest > 3


def _length(value: Any) -> int:
    return len(value) if isinstance(value, list) else 1
