"""README and docs/: every link leads somewhere, every command line composes, every Python block runs.

`make docs` builds the same pages with mkdocs, which is not needed here.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import re
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml

from pcbench import cli, compose, options, plan
from pcbench.backbones import weights
from pcbench.launch import slurm
from pcbench.sampling.generate import write_video

from . import forks

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
OUTSIDE = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "results/README.md")]
WRITTEN = [*OUTSIDE, ROOT / "pcbench/tiny/README.md", *sorted(DOCS.glob("*.md"))]
PAGES = [*WRITTEN, *sorted(DOCS.glob("*/*.md"))]
LONGEST_README, LARGEST_PICTURE = 120, 300_000  # lines, bytes
SHELL = ("cp", "curl", "rm", "tail")  # commands that are not the project's, and not tried
TARGETS = re.findall(r"(?m)^([a-z-]+):", (ROOT / "Makefile").read_text())
EXTRAS = re.findall(r"(?m)^(\w+) = \[", (ROOT / "pyproject.toml").read_text())
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCED = re.compile(r"(?ms)^( *)```.*?^\1```$")


@dataclass(frozen=True)
class Block:
    """A fenced block of code. reason: why it cannot be tried, from a comment before it; empty if it can."""

    page: Path
    line: int
    language: str
    text: str
    reason: str

    @property
    def name(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for match in re.finditer(r"(?ms)(?:^<!-- not tried: (\S[^\n]*) -->\n+)?^( *)```(\w*)\n(.*?)^\2```$", text):
        yield Block(page, text.count("\n", 0, match.start(4)), match[3], match[4], match[1] or "")


BLOCKS = [block for page in WRITTEN for block in blocks(page)]


def of(language: str) -> list[Block]:
    return [block for block in BLOCKS if block.language == language and not block.reason]


def anchors(page: Path) -> set[str]:
    """What may follow # in a link to a page, by GitHub's rule, which the site has, too."""
    found: list[str] = []
    for heading in re.findall(r"(?m)^#+ (.+)$", FENCED.sub("", page.read_text(encoding="utf-8"))):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        found.append(f"{slug}-{count}" if (count := found.count(slug)) else slug)
    return set(found)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page):
    text = re.sub(r"`[^`\n]*`", "", FENCED.sub("", page.read_text(encoding="utf-8")))
    dead = []
    for target in LINK.findall(text):
        if re.match(r"https?://|mailto:", target):
            continue
        path, _, anchor = target.partition("#")
        place = (page.parent / path).resolve() if path else page
        if not place.exists() or (anchor and anchor not in anchors(place)):
            dead.append(target)
    assert dead == []


@pytest.fixture(scope="module")
def site():
    spec = importlib.util.spec_from_file_location("site_hooks", DOCS / "site.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_site_has_every_page_once(site):
    nav = re.findall(r"(?m)^ +- .+: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text())
    assert sorted(nav) == sorted([*(path.name for path in DOCS.glob("*.md")), *site.PAGES.values()])
    assert sorted(site.PAGES) == sorted(str(path.relative_to(ROOT)) for path in WRITTEN if path.parent != DOCS)


def test_links_follow_a_page_to_its_place_on_the_site(site):
    text = "[a](docs/start.md#test-it) ![b](docs/pictures/strip.png) [c](notebooks/x.ipynb) [d](https://x.org/a.md)"
    expected = "[a](start.md#test-it) ![b](pictures/strip.png) c [d](https://x.org/a.md)"
    assert site.relinked(text, "README.md") == expected
    assert (
        site.relinked("[a](../results/README.md#b) [c](tables)", "docs/metrics.md")
        == "[a](records.md#b) [c](tables/table1.md)"
    )
    assert (
        site.relinked("[a](../claims.md) [b](../../README.md)", "docs/tables/x.md")
        == "[a](../claims.md) [b](../index.md)"
    )


def test_readme_is_one_screen_and_its_pictures_are_small():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= LONGEST_README
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", readme)
    assert {path.name for path in (DOCS / "pictures").iterdir()} == {Path(name).name for name in pictures}
    assert all((ROOT / name).stat().st_size <= LARGEST_PICTURE for name in pictures)


def test_readmes_table_is_the_demos():
    """Its numbers, without the spread, are those of the records' table."""

    def numbers(text: str) -> list[set[str]]:
        rows = [row for row in text.splitlines() if re.match(r"\| \w[^|]*\| \d+(\.\d)?/\d+ \|", row)]
        return [{cell.split()[0] for cell in row.strip("| ").split(" | ")[1:]} for row in rows]

    known = numbers((DOCS / "tables" / "demo.md").read_text())
    shown = numbers((ROOT / "README.md").read_text())
    assert len(shown) == len(known) == 5
    assert all(any(row <= other for other in known) for row in shown)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What the pages' user has: a pipeline, prompts, videos, a preset, and the committed records."""
    folder = tmp_path_factory.mktemp("users")
    shutil.copytree(weights.BUNDLED / "tiny_cogvideox", folder / "my-pipeline")
    (folder / "mine.txt").write_text("a red circle\na blue square\n")
    for name in ("uncached", "teacache", "mine"):
        (folder / name).mkdir()
        write_video(folder / name / "0.mp4", np.zeros((5, 16, 16, 3), np.uint8), fps=8)
    (folder / "results" / "presets").mkdir(parents=True)
    preset = folder / "results" / "presets" / "teacache-tiny_wan-2x.yaml"
    preset.write_text("defaults: [_teacache, _self_]\nthreshold: 0.1\n")
    (folder / "results" / "published").symlink_to(ROOT / "results" / "published")
    return folder


@pytest.mark.parametrize("block", of("bash"), ids=lambda block: block.name)
def test_every_command_line_is_one(block, folder, monkeypatch):
    monkeypatch.chdir(folder)
    values: dict[str, str] = {}
    for line in re.sub(r"\\\n", " ", block.text).splitlines():
        for part in line.split(" && "):
            words = shlex.split(re.sub(r"\$(\w+)", lambda match: values[match[1]], part), comments=True)
            while words and re.match(r"[A-Z_]+=", words[0]):
                name, _, values[name] = words.pop(0).partition("=")
            if words:
                try_line(words, monkeypatch)


def in_words() -> list[str]:
    """Command lines in the running text, but for those that leave something open, and history's."""
    pages = [page for page in WRITTEN if page.name != "CHANGELOG.md"]
    text = "\n".join(FENCED.sub("", page.read_text(encoding="utf-8")) for page in pages)
    found = {" ".join(line.split()) for line in re.findall(r"`((?:python -m|pcbench) [^`]+)`", text)}
    return sorted(line for line in found if not re.search(r"…|<|\|| [A-Z]+\b|=[A-Z]+|tests\.", line))


@pytest.mark.parametrize("line", in_words())
def test_every_command_line_in_the_text_is_one(line, folder, monkeypatch):
    monkeypatch.chdir(folder)
    try_line(shlex.split(line), monkeypatch)


def try_line(words: Sequence[str], monkeypatch) -> None:
    """Do with a command line all that comes before its work. An error is raised."""
    match words:
        case ["pcbench", name, *rest] if name in options.COMMANDS:
            try_line(["python", "-m", f"pcbench.{name}", *rest], monkeypatch)
        case ["pcbench", *rest]:
            try_line(["python", "-m", "pcbench", *rest], monkeypatch)
        case ["make", target]:
            assert target in TARGETS
        case ["pip", "install", package]:
            assert package.removeprefix("pcbench[").rstrip("]") in EXTRAS
        case ["pip", "wheel", "--no-deps", project]:
            assert (ROOT / project / "pyproject.toml").is_file()
        case ["python", "-m", "pytest", *rest]:
            assert all((ROOT / word).is_file() for word in rest if word.endswith(".py"))
        case ["python", "-m", "pcbench", *rest] | ["torchrun", "--nproc-per-node", _, "-m", "pcbench", *rest]:
            flags, options_ = cli.flags_of(rest)
            if not flags.help:
                composed = compose.compose(options_, flags.multirun)
                assert composed.runs
                plan.style_of(composed.settings.plan)
                if composed.settings.launcher == "slurm":
                    slurm.count(composed.settings.workers)
        case ["python", "-m", module]:  # a command's name in the text
            assert module.removeprefix("pcbench.") in options.COMMANDS or importlib.util.find_spec(module)
        case ["python", "-m", module, *rest]:
            parse(module, rest, monkeypatch)
        case _:
            assert words[0] in SHELL


class ParsedError(Exception):
    """A command's parser has understood its words."""


def parse(module: str, words: Sequence[str], monkeypatch) -> None:
    """Have a command read its words, and no more."""
    name = module.removeprefix("pcbench.")
    found = importlib.import_module(options.COMMANDS[name][0] if name in options.COMMANDS else module)
    if hasattr(found, "parse"):
        found.parse(list(words))
        return

    original = argparse.ArgumentParser.parse_args

    def stop(parser, *arguments):
        original(parser, *arguments)
        raise ParsedError

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    monkeypatch.setattr(sys, "argv", [module, *words])
    if module == "analysis.conventions":  # prints what is in git, and has no parser
        assert found.main() == 0
        return
    main = importlib.import_module(f"{module}.__main__").main if module == "analysis" else found.main
    try:
        main(list(words)) if main.__code__.co_argcount else main()
    except ParsedError:
        return
    except SystemExit as stopped:
        if not stopped.code:  # --help
            return
    pytest.fail(f"{module} has not understood {shlex.join(words)}")


# README's has a test of its own, in test_library.py, since machines differ by a step.
@pytest.mark.parametrize("block", [block for block in of("python") if block.page in WRITTEN[1:]], ids=lambda b: b.name)
def test_every_python_block_runs(block, tmp_path):
    done = forks.code(block.text, tmp_path, ROOT)
    assert done.returncode == 0, done.stderr
    for promised in re.findall(r"(?m)^print\(.+\)  # (.+)$", block.text):
        assert promised in done.stdout.splitlines()


@pytest.mark.parametrize("group", ["experiment", "method", "model"])
def test_every_choice_is_named_on_a_page(group):
    """Some presets by their end alone, after another one's name: `pab`, `_246`."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in WRITTEN if page.name != "CHANGELOG.md")
    named = set(re.findall(r"`(\w+)`", text)) | set(re.findall(r"[ +](?:experiment|method|model)=(\w+)", text))
    names = {path.stem for path in (ROOT / "conf" / group).glob("*.yaml") if not path.stem.startswith("_")}
    missing = {name for name in names - named if not any(f"_{end}" in named for end in ends(name))}
    twins = {name for name in missing if name.endswith("_tiny") and name.removesuffix("_tiny") in named}
    ranges = {name for name in missing if re.fullmatch(r"magcache_e\d+k\d|fig\d|table\d", name)}  # written with a gap
    assert sorted(missing - twins - ranges) == []


def ends(name: str) -> list[str]:
    parts = name.split("_")
    return ["_".join(parts[start:]) for start in range(1, len(parts))]


def test_the_models_yaml_is_the_bundled_ones():
    (block,) = of("yaml")
    assert yaml.safe_load(block.text) == yaml.safe_load((ROOT / "conf" / "model" / "tiny_wan.yaml").read_text())


def test_every_block_is_tried_or_says_why_not():
    languages = {"bash", "python", "yaml", "mermaid"}  # mermaid is a picture
    assert [block.name for block in BLOCKS if block.language not in languages and not block.reason] == []
    assert sum(path.read_text(encoding="utf-8").count("\n```") for path in WRITTEN) == 2 * len(BLOCKS)
