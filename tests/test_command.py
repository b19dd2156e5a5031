"""Every command's --help lists its options, one line each; mistakes are one line; `pcbench NAME` runs NAME."""

from __future__ import annotations

import dataclasses
import importlib
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pcbench import __main__ as launcher
from pcbench import cli, completion, config, options, runs
from pcbench.backbones import FAMILIES
from pcbench.command import Command, FaultsError, Progress, left, options_of, process_of

ROOT = Path(__file__).parents[1]
OURS = [name for name, (module, _) in options.COMMANDS.items() if name not in ("analysis", "vbench", "tracking")]


def keys() -> set[str]:
    """The options of --help, without what they are given."""
    return {name.partition("=")[0].lstrip("+") for name in options.RUN}


def fields(kind, place: str) -> set[str]:
    return {f"{place}{item.name}" for item in dataclasses.fields(kind)}


def test_help_leaves_no_option_out_and_invents_none():
    expected = fields(runs.Settings, "") - {"sweeps", "latency", "score", "slurm"} | {
        "model",
        "method",
        "prompts",
        "experiment",
    }
    expected |= fields(config.Latency, "latency.") | fields(config.Score, "score.") | fields(config.Prompts, "prompts.")
    expected |= fields(config.Model, "model.") - {f"model.{name}" for name in ("backbone", "sampling", "numerics")}
    expected |= fields(config.Backbone, "model.backbone.") | fields(config.Sampling, "model.sampling.")
    expected |= fields(config.Numerics, "model.numerics.") | fields(config.Slurm, "slurm.")
    open_ended = {"model.backbone.call.KEY", "model.backbone.transformer.KEY", "model.download.KEY", "method.FIELD"}
    open_ended |= {"slurm.additional.KEY"}
    expected -= {name.removesuffix(".KEY") for name in open_ended}
    assert keys() == expected | open_ended


@pytest.mark.parametrize("name", options.COMMANDS)
def test_help_of_every_command(name, capsys):
    try:
        code = launcher.main([name, "--help"])
    except SystemExit as stop:  # argparse's way
        code = stop.code
    assert not code
    text = capsys.readouterr().out
    assert len(text) > 100
    if name in OURS:
        command = importlib.import_module(options.COMMANDS[name][0]).COMMAND
        assert command.name == f"pcbench.{name}"
        lines = text.splitlines()
        for option in (*command.options, *command.shared):
            (line,) = [line for line in lines if line.startswith(f"  {option} ")]
            assert len(line) <= 160


def test_main_help_lists_commands_options_and_names(capsys):
    assert launcher.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert "  tune " in text
    assert "  model.sampling.steps=N " in text
    assert "model: " in text


@pytest.mark.parametrize("name", OURS)
def test_a_wrong_word_is_one_line(name, capsys):
    assert launcher.main([name, "--nonsense"]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"pcbench.{name}: ")
    assert captured.err.count("\n") == 1
    assert len(captured.err) <= 300


def test_a_command_misspelt(capsys):
    assert launcher.main(["comapre", "a", "b"]) == 2
    assert capsys.readouterr().err == "pcbench: no command 'comapre': did you mean 'compare'?\n"
    assert launcher.main(["nonsense"]) == 2  # the main command's own words
    assert "option=value" in capsys.readouterr().err


def test_the_installed_command_is_this_one():
    done = subprocess.run([sys.executable, "-m", "pcbench", "vbench", "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "setup" in done.stdout


def test_vbenchs_own_command_starts_without_torch():
    code = "import sys, pcbench.vbench.__main__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_exit_codes(capsys):
    command = Command("x", "Does x.\n\nMore.", {"a=N": "how many"})

    def fail(error: BaseException):
        def work(_):
            raise error

        return work

    assert command.run(["-h"], fail(AssertionError()), fail(AssertionError())) == 0
    assert capsys.readouterr().out == "Does x.\n\nMore.\n\noptions:\n  a=N  how many\n"
    assert command.run([], fail(FaultsError(["one", "two"])), print) == 2
    assert capsys.readouterr().err == "x: one\nx: two\n"
    assert command.run([], list, fail(RuntimeError("it\nbroke"))) == 1
    assert capsys.readouterr().err == "x: failed: it broke\n"
    assert command.run([], list, fail(KeyboardInterrupt())) == 130
    assert "continues where it stopped" in capsys.readouterr().err
    assert command.run([], list, lambda _: None) == 0
    assert command.run([], list, lambda _: 7) == 7


def test_options_by_name():
    assert options_of(["b=2"], {"a": "1", "b": "1"}) == {"a": "1", "b": "2"}
    assert options_of(["out=~/x"], {"out": "."}) == {"out": str(Path.home() / "x")}
    with pytest.raises(ValueError, match="unknown option 'viedos=2': did you mean 'videos'"):
        options_of(["viedos=2"], {"videos": "1", "seed": "0"})


def test_progress_is_told_now_and_then_with_the_time_left():
    assert left(10, 40, 5.0) == "about 15 s left"
    assert left(1, 100, 60.0) == "about 99 min left"
    assert (left(0, 9, 1.0), left(9, 9, 1.0)) == ("", "")
    said: list[str] = []
    progress = Progress(said.append, period=0.05)
    progress(1, 10)
    assert not said
    time.sleep(0.06)
    progress(2, 10, "b")
    progress(3, 10, "c")
    assert len(said) == 1
    assert said[0].startswith("[2/10, about ")
    assert said[0].endswith("left] b")


@pytest.mark.parametrize("main", [cli.main, Command("x", "about").run])
def test_help_that_nobody_reads_to_the_end_is_no_fault(main, capfd, monkeypatch):
    """As in `python -m pcbench --help | head -1`."""
    read, write = os.pipe()
    os.close(read)
    arguments: list[Any] = [["--help"]] if main == cli.main else [["--help"], lambda words: words, lambda work: 0]
    with os.fdopen(write, "w") as closed:
        monkeypatch.setattr("sys.stdout", closed)
        assert main(*arguments) == 141
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("command", ["cli", "another"])
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_work_goes_on_when_nobody_reads_its_lines(command, stream, monkeypatch):
    """As in `python -m pcbench … | head -1`, or beside a `tee` that was ended."""
    done = []

    def work(_: object) -> int:
        for number in range(3):
            print(f"sample {number}", file=getattr(sys, stream), flush=True)
            done.append(number)
        return 0

    monkeypatch.setattr(cli, "_before_work", lambda words: "work")
    monkeypatch.setattr(cli, "_carry_out_all", work)
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as closed:
        monkeypatch.setattr(sys, stream, closed)
        code = cli.main([]) if command == "cli" else Command("x", "about").run([], lambda words: words, work)
        assert getattr(sys, stream) is closed
    assert (code, done) == (0, [0, 1, 2])


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python's option -P")
def test_folders_of_the_users_own_hide_nothing_from_a_further_process(tmp_path, monkeypatch):
    """`pcbench` itself, the console script, has no working directory in its path."""
    for name in ("analysis", "methods", "pcbench"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('the user's own')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for module in ("pcbench.tracking", "analysis"):
        done = subprocess.run(process_of(module, "--help"), capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
    monkeypatch.chdir(ROOT)
    assert "-P" not in process_of("pcbench")  # where they may be found there alone


def test_every_further_process_is_started_so():
    found = [path.name for folder in ("pcbench", "analysis") for path in (ROOT / folder).rglob("*.py")
             if re.search(r'sys.executable, "-m"', path.read_text())]  # fmt: skip
    assert found == []


def completed(line: str) -> set[str]:
    """What bash offers at the end of a line."""
    script = completion.SHELLS["bash"]
    words = line.split(" ")
    quoted = " ".join(f"'{word}'" for word in words)
    use = f"COMP_LINE='{line}' COMP_POINT={len(line)} COMP_WORDS=({quoted}) COMP_CWORD={len(words) - 1}"
    program = f'pcbench() {{ "{sys.executable}" -m pcbench "$@"; }}\ncompopt() {{ :; }}\n{script}\n{use}\n_pcbench\n'
    done = subprocess.run(["bash", "-c", program + 'printf "%s\\n" "${COMPREPLY[@]}"'], capture_output=True, text=True)
    assert done.stderr == ""
    return {each for each in done.stdout.splitlines() if each}


def test_a_shell_completes_commands_options_and_values():
    assert {"tune ", "model=", "model.sampling.steps=", "method."} <= completed("pcbench ")
    assert completed("pcbench model=tiny_") == {"tiny_wan", "tiny_hunyuan", "tiny_cogvideox", "tiny_opensora"}
    assert completed("pcbench -m method=fora,precisecache_b") == {"fora,precisecache_base"}
    assert "table1_tiny" in completed("pcbench +experiment=ta")


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("stages=[generate,sc", ["stages=[generate,score"]),
        ("launcher=", [f"launcher={name}" for name in ("local", "none", "ray", "slurm")]),
        ("model.numerics.compile=t", ["model.numerics.compile=true"]),
        ("results=", []),
        ("oracl", ["oracle "]),
        ("model.back", [f"model.backbone.{name}=" for name in ("family", "name", "revision", "source")]),
    ],
)
def test_candidates(word, expected):
    assert completion.candidates(word) == expected


def test_completion_says_which_shells_there_are(capsys):
    assert launcher.main(["completion", "tcsh"]) == 2
    assert "bash, zsh, fish" in capsys.readouterr().err
    assert completion.candidates("", "tune") == []


def test_the_help_names_every_family():
    assert set(re.split(", | or ", options.RUN["model.backbone.family=NAME"])) == set(FAMILIES)
