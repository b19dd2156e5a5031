"""README's pictures, PNGs of at most 300 kB: frames of two prompts, method by method, and PSNR against speed.

`make pictures` makes the videos, and both pictures.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

from pcbench.store import write_whole

from ..command import Parser, run
from ..load import Bench, benches
from ..pareto import Curve, curves
from . import style
from .highlight import OURS
from .labels import place
from .pareto import BY_MACS, SIZE, draw_panel, mean_points
from .strips import strips, title_of

MODEL = "tiny_wan"
# The curves with a name, the best at twice the speed first; all others are pale.
NAMED = {
    "planned extrapolate": "planned (ours)",
    "controlled extrapolate": "controlled (ours)",
    "magcache stack": "MagCache",
    "teacache stack": "TeaCache",
    OURS: "PreciseCache",
    "fewer_steps": "fewer steps",
}
WIDTH = 1000  # pixels
SHADES = 4  # levels of a channel that become one: nobody sees it, and it halves the file


def pareto(records: Path) -> Figure:
    """Mean PSNR against speedup by MACs of every method in the experiment `methods`, each from the machine that tried
    most of its settings, of those with the reference and the prompts of the most records. Raises ValueError without
    such records."""
    found: dict[str, tuple[Curve, int]] = {}
    alike: dict[tuple[str, frozenset[str]], list[Bench]] = {}
    for bench in _benches(records, "methods"):
        alike.setdefault((bench.reference, frozenset(bench.samples["prompt"])), []).append(bench)
    most = max(alike.values(), key=lambda group: sum(len(bench.records) for bench in group), default=[])
    for bench in most:
        here, prompts = curves(bench)
        for name, curve in here.items():
            if name not in found or len(curve.efficiency) > len(found[name][0].efficiency):
                found[name] = curve, prompts
    if missing := NAMED.keys() - found.keys():
        raise ValueError(f"no records of {', '.join(sorted(missing))} under {records}")
    figure, axes = style.panels(1, 1, height=3.3)
    drawn = {name: mean_points(curve, prompts, BY_MACS) for name, (curve, prompts) in found.items()}
    chosen = {name: style.highlighted(number) for number, name in enumerate(NAMED)}
    lines = draw_panel(axes[0, 0], drawn, list(NAMED), chosen, NAMED, ())
    axes[0, 0].set(xlabel=BY_MACS.speed, ylabel="PSNR to the uncached video, dB")
    style.over_speedups(axes[0, 0])
    place(figure, [(axes[0, 0], lines)], SIZE)
    return figure


def strip(videos: Path) -> Figure:
    """Frames of the videos that the experiment `pictures` made. Raises ValueError without them."""
    if not (found := _benches(videos, "")):
        raise ValueError(f"no videos of {MODEL} under {videos}: python -m pcbench +experiment=pictures makes them")
    bench = found[0]
    rows = bench.records.sort_values("macs_speedup", kind="stable")
    names = ["no cache" if row["id"] == bench.reference else title_of(bench, row) for _, row in rows.iterrows()]
    speeds = [f"{name} {speedup:.1f}×" for name, speedup in zip(names, rows["macs_speedup"], strict=True)]
    return strips(bench, dict(zip(rows["id"], speeds, strict=True)))[0]


def _benches(results: Path, experiment: str) -> list[Bench]:
    return [each for each in benches(results) if each.model == MODEL and experiment in ("", each.experiment)]


def png(figure: Figure) -> bytes:
    """A figure as a small PNG, WIDTH pixels wide."""
    from PIL import Image  # which matplotlib needs as well

    picture = Image.open(io.BytesIO(style.rendered(figure, "png"))).convert("RGB")
    picture = picture.resize((WIDTH, round(picture.height * WIDTH / picture.width)), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    levels = [min(255, round(level / SHADES) * SHADES) for level in range(256)]
    picture.point(levels * 3).save(buffer, "png", optimize=True)
    return buffer.getvalue()


def main(argv: Sequence[str] | None = None) -> int:
    """Write pareto.png and strip.png; exit code 2 with one line if there is nothing to draw from."""
    parser = Parser(prog="analysis pictures", description=__doc__)
    parser.add_argument("records", type=Path, help="folder with records of the experiment methods")
    parser.add_argument("videos", type=Path, help="folder with the videos of the experiment pictures")
    parser.add_argument("--out", type=Path, default=Path("docs/pictures"), help="folder to write to")
    args = parser.parse_args(argv)

    def work() -> str:
        with style.styled():
            figures = {"pareto": pareto(args.records), "strip": strip(args.videos)}
        for name, figure in figures.items():
            write_whole(args.out / f"{name}.png", partial(Path.write_bytes, data=png(figure)))
        return f"{args.out}/pareto.png, strip.png"

    return run(work)
