"""What the metrics in records are called, and which direction is better, as the records themselves say."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

RAW = "raw"
# For records too old to describe their metrics, by the name without convention and version.
OLDER: dict[str, dict[str, Any]] = {
    "psnr": {"title": "PSNR", "unit": "dB", "digits": 2, "lower_is_better": False, "shown": True},
    "ssim": {"title": "SSIM", "unit": "", "digits": 4, "lower_is_better": False, "shown": True},
    "lpips": {"title": "LPIPS", "unit": "", "digits": 4, "lower_is_better": True, "shown": True},
    "latent_psnr": {"title": "latent PSNR", "unit": "dB", "digits": 2, "lower_is_better": False, "shown": False},
}


@dataclass(frozen=True)
class Metric:
    """name: with convention and version ("videosys.psnr@1"). shown: whether tables have a column for it. ideal: the
    reference's own value, if values on either side of it are worse; None if one direction is better."""

    name: str
    title: str
    unit: str
    digits: int
    lower_is_better: bool
    shown: bool
    ideal: float | None = None

    @property
    def convention(self) -> str:
        """Whose definition it follows; "raw" is this project's own."""
        return self.name.partition("@")[0].rpartition(".")[0] or RAW

    @property
    def kind(self) -> str:
        """The name without convention and version: "psnr"."""
        return self.name.partition("@")[0].rpartition(".")[2]

    @property
    def spec(self) -> str:
        """How a value is written."""
        return f".{self.digits}f"

    @property
    def heading(self) -> str:
        """The heading of a table's column: "PSNR (dB) ↑", "sharpness → 1"."""
        arrow = f"→ {self.ideal:g}" if self.ideal is not None else "↓" if self.lower_is_better else "↑"
        return f"{self.title}{f' ({self.unit})' if self.unit else ''} {arrow}"

    @property
    def words(self) -> str:
        """The name in running text: "PSNR, dB (videosys)"."""
        text = f"{self.title}, {self.unit}" if self.unit else self.title
        return text if self.convention == RAW else f"{text} ({self.convention})"


PEAK_MEMORY = Metric("peak_memory", "Peak memory", "GiB", 2, lower_is_better=True, shown=True)


def metric_of(name: str, records: Iterable[dict[str, Any]] = ()) -> Metric:
    """A metric by its name, as the first record that describes it does."""
    kind = name.partition("@")[0].rpartition(".")[2]
    entries = (record.get("fidelity", {}).get(name, {}) for record in records)
    known = next((entry for entry in entries if "title" in entry), OLDER.get(kind, OLDER["ssim"] | {"title": kind}))
    return Metric(name=name, ideal=known.get("ideal"), **{field: known[field] for field in OLDER["psnr"]})
