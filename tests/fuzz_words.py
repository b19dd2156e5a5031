# ruff: noqa: E501
"""Hostile command lines, generated from a seed: `python -m tests.fuzz_words [lines] [seed]`.

Every option of every config meets every hostile value, beside flags, sweeps and files that are none. A line is a result
(for a plan, or what remains to be run at a tiny size) or one line on stderr and exit code 2 before anything runs. What
would start work stops there: the checks are those of the program, the work is not.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import random
import re
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from pcbench import cli, compose
from pcbench.config import Backbone, Download, Latency, Numerics, Prompts, Sampling, Score, Slurm
from pcbench.messages import LONGEST
from pcbench.runs import Settings

SMALL = {
    "prompts.limit": "1", "model.sampling.steps": "3", "model.sampling.frames": "5", "model.sampling.height": "64",
    "model.sampling.width": "64", "stages": "[generate]",
}  # fmt: skip
VALUES = [
    "", "null", "nan", "inf", "-inf", ".nan", "-1", "0", "1", "2", "-0.5", "0.5", "1e30", "1e-30", "1e400", "9" * 25,
    "9223372036854775808", "18446744073709551616", "true", "false", "[]", "{}", "[1]", "[nan]", "[[1]]", "{a: 1}",
    "{a: {b: 1}}", "[0,0,0]", "[1,1]", "[2,2,2]", "[1e9,1,1]", "foo", "'foo bar'", '"a\nb"', "a,b", "'a,b'", "a b", "é",
    "模糊", "👩‍🎨", "'", '"', "\\", "$", "${", "${device}", "${nothing}", "${model}", "${oc.env:HOME}", "${oc.env:NOT_THERE}",
    "../up", "/etc/passwd", "/dev/null", ".", "x" * 5000, "\t", "\x1b[31m", "range(0,0)", "range(1,1e12)", "glob(*)",
    "choice(1,2)", "interval(0,1)", "shuffle(1,2)", "int(3.7)", "float(1)", "~", "@", "#", "0x10", "1_000", "!!python/name:os.system",
]  # fmt: skip
FLAGS = [
    "--help", "-h", "--hydra-help", "--cfg", "--cfg=job", "--cfg=all", "--cfg=zzz", "-c", "--info", "--info=zzz", "--resolve",
    "--package=x", "--run", "--multirun=1", "-mm", "--version", "--experimental-rerun=x.pickle", "--config-path=/tmp",
    "--config-dir=/tmp", "--config-name=x", "-cn=x", "-cp=x", "-cd", "--shell-completion", "-", "--", "---", "-1", "--foo=bar",
]  # fmt: skip
STRANGE = [
    "=", "==", "a", "a=", "=a", "+", "++", "+=1", "~", "~method", "~wandb", "~model.sampling", "method", "+method=none",
    "++method=none", "method@x=none", "+method@second=none", "model@=wan", "method=_none", "method=none.yaml", "method=null",
    "method=[none,pab]", "method={}", "method=../model/wan", "method=NONE", "model=", "prompts=demo.txt", "+experiment=",
    "+experiment=[demo,table1]", "+experiment=demo,table1", "experiment=nope", "+model._target_=os.system", "+_target_=os.system",
    "+method._target_=os.system", "+model.backbone.call._target_=os.system", "hydra.launcher=x", "hydra/launcher=joblib",
    "+hydra.callbacks.x._target_=os.system", "hydra.sweeper.params={method: none}", "hydra={}", "hydra.run.dir=/tmp/x",
    "hydra.job.chdir=true", "++hydra.verbose=true", "+unknown.key=1", "+unknown=1", "++unknown.a.b=1", "+latency.foo=1",
    "+prompts.foo=1", "+method.foo=1", "+score.foo=1", "+model.foo=1", "+model.sampling.foo=1", "model.sampling[steps]=3",
    "model.sampling.=3", "model..sampling=3", ".=1", "model.backbone.family=hunyuan", "model.backbone.family=foo",
    "model.backbone.source=random", "model.backbone.source=bundled:", "model.backbone.source=bundled:../x",
    "model.backbone.source=bundled:tiny_hunyuan", "model.backbone.name=../../x", "model.backbone.name=a/b", "device=mps",
    "device=meta", "device=cuda:99", "device=cuda:-1", "device=CPU", "model.numerics.attention=flash", "model.numerics.dtype=float64",
    "model.numerics.attention=_native_flash", "model.numerics.attention=sage", "model.sampling.frames=100001",
    "model.sampling.height=100000", "model.sampling.width=1048576", "+model.backbone.call.generator=1",
    "+model.backbone.call.guidance_scale_2=3", "model.backbone.call={max_sequence_length: 0}", "results={file}",
    "model.backbone.call.max_sequence_length=-1", "+model.backbone.transformer.num_layers=7", "results={file}/below",
    "+model.backbone.transformer.foo=7", "results=", "results=/dev/null", "results=/proc/x", "results=" + "x" * 300,
    "results='{results}/new\nline'", "results='{results}/é 模'", "prompts.file={binary}", "prompts.file={folder}",
    "prompts.file={empty}", "prompts.file={nul}", "prompts.file=", "prompts.file=/dev/zero", "prompts.file={long}",
    "launcher=ray", "launcher=slurm", "launcher=local workers=1", "shard=1/0", "shards=2", "shard=2/2", "workers=3",
    "prompts.seeds=[0,0]", "prompts.seeds=[-1]", "model.fps=0", "wandb=maybe", "plan=maybe", "plan_gpu=x", "stages=generate",
]  # fmt: skip


def keys() -> list[str]:
    """Every option that a value can be given to."""
    parts = {
        "model.sampling": Sampling, "model.numerics": Numerics, "model.download": Download, "model.backbone": Backbone,
        "prompts": Prompts, "latency": Latency, "score": Score, "slurm": Slurm, "": Settings,
    }  # fmt: skip
    found = [f"{part}.{f.name}".lstrip(".") for part, kind in parts.items() for f in dataclasses.fields(kind)]
    found.remove("results")  # where a line may write; STRANGE has folders that cannot be
    return [*found, "model.fps", "model.weights", "model.offload"]


def method_keys() -> list[tuple[str, str]]:
    """Every preset with every option of its method."""
    return [(name, f.name) for name in compose.names("method") if name != "replay"
            for f in dataclasses.fields(compose.preset(name))]  # fmt: skip


def lines(count: int, seed: int = 0) -> Iterator[list[str]]:
    """So many command lines; the first are STRANGE and FLAGS, alone, the others drawn."""
    draw = random.Random(seed)
    fixed = [[word] for word in (*STRANGE, *FLAGS)]
    draw.shuffle(fixed)
    yield from fixed[:count]
    options, of_methods = keys(), method_keys()
    for _ in range(count - len(fixed)):
        words = []
        for _ in range(draw.choice((1, 1, 1, 2, 3))):
            kind = draw.random()
            if kind < 0.45:
                words.append(f"{draw.choice(options)}={draw.choice(VALUES)}")
            elif kind < 0.85:
                preset, option = draw.choice(of_methods)
                words += [f"method={preset}", f"method.{option}={draw.choice(VALUES)}"]
            elif kind < 0.95:
                words.append(draw.choice(STRANGE))
            else:
                words.append(draw.choice(FLAGS))
        if draw.random() < 0.3:
            words.insert(draw.randrange(len(words) + 1), "-m")
        if draw.random() < 0.15:
            words.append("plan=true")
        yield words


@dataclass(frozen=True)
class Outcome:
    """What a line came to: its exit code (None: a traceback), what it said, and what it wrote where it should not."""

    words: list[str]
    code: int | None
    complaint: str
    strays: list[str]

    @property
    def faults(self) -> list[str]:
        """What is wrong with it."""
        said = self.complaint.splitlines()
        found = ["traceback"] if self.code is None else []
        found += ["exit code"] if self.code not in (0, 2, None) else []
        found += ["not one line"] if self.code == 2 and len(said) != 1 else []
        found += ["long"] if self.code == 2 and len(said) == 1 and len(said[0]) > LONGEST + 20 else []
        found += ["unexpected"] if "unexpected" in self.complaint else []
        return found + (["stray files"] if self.strays else [])


class Bench:
    """A folder with hostile files in it, where lines are tried. Every run but the first of a line is stopped."""

    def __init__(self, folder: Path) -> None:
        self.files = {name: folder / "given" / name for name in ("file", "binary", "folder", "empty", "nul", "long")}
        self.files["folder"].mkdir(parents=True)
        self.files["file"].write_text("in the way")
        self.files["binary"].write_bytes(bytes(range(256)))
        self.files["empty"].write_text("# nothing\n\n")
        self.files["nul"].write_bytes(b"a red circle\0\n")
        self.files["long"].write_text("a" * 200_000)
        self.folder, self.results, self.here = folder, folder / "results", folder / "here"
        self.here.mkdir()

    def try_line(self, words: list[str]) -> Outcome:
        """Send the words through `cli.main`, with all checks; work itself is replaced by nothing."""
        names = {name: str(path) for name, path in self.files.items()} | {"results": str(self.results)}
        words = [re.sub(r"\{(\w+)\}", lambda m: names.get(m[1], m[0]), word) for word in words]
        given = {word.lstrip("+~").partition("=")[0] for word in words}
        rest = {**SMALL, "results": str(self.results)}
        line = [*words, *(f"{key}={value}" for key, value in rest.items() if key not in given)]
        before, out, err = set(self._strays()), io.StringIO(), io.StringIO()
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            mock.patch.object(cli, "_carry_out_all", return_value=0),
        ):
            try:
                code: int | None = cli.main(line)
            except SystemExit as error:
                code = int(error.code or 0)
            except BaseException:
                code = None
                traceback.print_exc(file=err)
        return Outcome(words, code, err.getvalue().rstrip("\n"), sorted(set(self._strays()) - before))

    def _strays(self) -> list[str]:
        folders = [self.here, self.folder, self.folder / "given"]
        own = {"given", "here", "results"}
        return [str(path) for each in folders for path in each.iterdir() if path.name not in own]


def main() -> int:
    count, seed = (int(word) for word in [*sys.argv[1:], *("1000", "0")[len(sys.argv) - 1 :]])
    with tempfile.TemporaryDirectory(prefix="pcbench-fuzz-") as folder:
        bench, before = Bench(Path(folder)), os.getcwd()
        os.chdir(bench.here)
        outcomes = []
        for number, words in enumerate(lines(count, seed)):
            outcomes.append(outcome := bench.try_line(words))
            if outcome.faults:
                print(
                    number,
                    outcome.faults,
                    repr(words)[:300],
                    outcome.code,
                    outcome.complaint[-600:],
                    outcome.strays,
                    flush=True,
                )
        os.chdir(before)
    faults = Counter(fault for outcome in outcomes for fault in outcome.faults)
    print(
        f"lines {len(outcomes)}: {sum(o.code == 0 for o in outcomes)} accepted, {sum(o.code == 2 for o in outcomes)} refused"
    )
    print(f"tracebacks {faults['traceback']}, unexpected {faults['unexpected']}")
    print(f"exit codes other than 0 and 2: {faults['exit code']}, more than one line: {faults['not one line']}")
    print(f"writes outside the results folder: {faults['stray files']}")
    print(f"longest message: {max((len(o.complaint) for o in outcomes if o.code == 2), default=0)} characters")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
