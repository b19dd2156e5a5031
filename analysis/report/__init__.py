"""Records and their videos, or a comparison of folders, to one static folder that a browser opens from disk."""

from __future__ import annotations

import functools
import json
import shutil
import urllib.parse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pcbench.store import write_whole

from ..command import Parser, run
from . import comparison, data, media

PAGE = Path(__file__).with_name("page")
PROMPTS = 32
FIGURES = Path("figures")  # where `python -m analysis figures` writes by default


def write(
    results: Path,
    out: Path,
    prompts: int = PROMPTS,
    figures: Path | None = None,
    say: Callable[[str], None] = print,
) -> Path:
    """Write the report of a results folder (and of its children that hold records), or of a comparison of folders, to
    `out`; returns its index.html.

    The `prompts` worst of every bench are shown. Videos are linked or copied, difference videos made once. `figures` is
    a folder of PNG files, each with its caption beside it in a text or Markdown file of the same name. Raises
    ValueError if there are no records, or if fewer than one prompt is asked for.
    """
    if prompts < 1:
        raise ValueError(f"a report of {prompts} prompts shows nothing; ask for one or more")
    found = comparison.benches(results) if comparison.is_one(results) else data.benches(results)
    for file in PAGE.iterdir():
        write_whole(out / file.name, functools.partial(shutil.copyfile, file))
    for number, bench in enumerate(found):
        _write_bench(bench, number, out, prompts, say)
    _script(out / "data" / "index.js", "REPORT.start", {"benches": found, "figures": _figures(figures, out)})
    return out / "index.html"


def _figures(folder: Path | None, out: Path) -> list[dict[str, Any]]:
    """Bring the figures; return the file, title and caption of each, one string per paragraph."""
    found = []
    for picture in sorted(folder.glob("*.png")) if folder else []:
        shown = out / "figures" / picture.name
        media.bring(picture, shown)
        beside = [picture.with_suffix(suffix) for suffix in (".md", ".txt")]
        text = next((path.read_text(encoding="utf-8") for path in beside if path.exists()), "")
        paragraphs = [" ".join(part.split()) for part in text.split("\n\n") if part.strip()]
        found.append({"file": _address(shown, out), "title": picture.stem, "words": paragraphs})
    return found


def _write_bench(bench: dict[str, Any], number: int, out: Path, prompts: int, say: Callable[[str], None]) -> None:
    """Write a bench's media and prompts; keep in `bench` only what the page needs at its start."""
    kept = bench["prompts"][:prompts]
    bench["prompts_in_all"] = len(bench["prompts"])
    bench["video"] = _media(bench, kept, out, say)
    for place, prompt in enumerate(kept):
        prompt["file"] = f"data/{number}-{place}.js"
        _script(out / prompt["file"], "REPORT.deliver", [prompt["file"], prompt.pop("samples")])
    bench["prompts"] = kept
    del bench["videos"]


def _media(bench: dict[str, Any], prompts: list[dict[str, Any]], out: Path, say: Callable[[str], None]) -> Any:
    """Bring these prompts' videos, make the differences, name both in the samples; return length and size."""
    files = bench["videos"]
    references, described = files.get(bench["reference"], {}), None
    for prompt in prompts:
        key, frames = (prompt["prompt"], prompt["seed"]), None
        for identity, sample in prompt["samples"].items():
            if key not in files[identity]:
                continue
            video, place = files[identity][key]
            described = described or {**media.about(video), "full": media.FULL}
            target = out / "media" / bench["experiment"] / place
            media.bring(video, target)
            sample["video"] = _address(target, out)
            if key in references and identity != bench["reference"]:
                difference = target.with_suffix(".difference.mp4")
                frames = media.difference(video, references[key][0], frames, difference, described["fps"])
                sample["difference"] = _address(difference, out)
        say(f"{bench['model']}  {prompt['title']!r}")
    return described


def _address(file: Path, out: Path) -> str:
    """A file of the report as the page addresses it: `#`, `?` and `%` in its name are no part of an address."""
    return urllib.parse.quote(file.relative_to(out).as_posix())


def _script(path: Path, call: str, content: Any) -> None:
    """Write data as a script that calls `call` with it: a page opened from disk may load scripts, not JSON."""
    text = f"{call}({json.dumps(content, allow_nan=False, separators=(',', ':'))});\n"
    write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def main(argv: Sequence[str] | None = None) -> int:
    """Write the report; exit code 2 with one line if there is nothing to show."""
    parser = Parser(prog="analysis report", description=__doc__)
    parser.add_argument("results", type=Path, nargs="?", default=Path("results"))
    parser.add_argument("--out", type=Path, default=Path("report"), help="folder to write to")
    parser.add_argument("--prompts", type=int, default=PROMPTS, help="show so many of each bench, the worst first")
    parser.add_argument(
        "--figures", type=Path, help="folder of PNG files, each with its words in NAME.md: `figures` if there"
    )
    args = parser.parse_args(argv)
    figures = args.figures or (FIGURES if FIGURES.is_dir() else None)
    return run(lambda: str(write(args.results, args.out, args.prompts, figures)))
