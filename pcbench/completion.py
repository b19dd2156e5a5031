"""Tab completes commands, options and their values in the shell.

Standard library only: an answer to a key press may not wait for torch.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from .command import Command
from .messages import nearest
from .options import COMMANDS, RUN

GROUPS = ("model", "method", "prompts", "experiment")
FLAGS = ("--multirun", "--help", "--cfg")
# Bash splits words at "=", so what it is offered begins after the last one.
SHELLS = {
    "bash": """_pcbench() {
  local IFS=$'\\n' line="${COMP_LINE:0:COMP_POINT}"
  local word="${line##* }"
  COMPREPLY=($(pcbench completion of "$word" "${COMP_WORDS[1]}" 2>/dev/null))
  [[ "$word" == *=* ]] && COMPREPLY=("${COMPREPLY[@]#"${word%=*}="}")
  compopt -o nospace
}
complete -F _pcbench pcbench""",
    "zsh": """_pcbench() { compadd -U -Q -S '' -- ${(f)"$(pcbench completion of "$PREFIX" "$words[2]" 2>/dev/null)"} }
compdef _pcbench pcbench""",
    "fish": """complete -c pcbench -f \\
    -a '(pcbench completion of (commandline -ct) (commandline -opc)[2] 2>/dev/null | string trim)'""",
}
COMMAND = Command(
    "pcbench.completion",
    "python -m pcbench completion bash|zsh|fish\n\nPrints what makes Tab complete in that shell (docs/start.md).",
    {"of WORD FIRST": "the candidates for a word that has been begun; FIRST is the line's first word"},
)


def candidates(word: str, first: str = "") -> list[str]:
    """What a word that has been begun may become, in a line whose first word is `first`, sorted.

    After a comma or "[" it is the next value of a list. A word that another follows ends with a space, an option with
    "=", one whose name goes on with ".".
    """
    if first in COMMANDS and first != word:
        return []  # a command's own options are few, and its --help lists them
    name, equals, value = word.partition("=")
    if equals:
        start = max(value.rfind(mark) for mark in ",[") + 1
        before, begun = f"{name}={value[:start]}", value[start:]
        return [f"{before}{each}" for each in sorted(_values(name)) if each.startswith(begun)]
    options = {_head(option) for option in RUN}
    found = {f"{each} " for each in (*COMMANDS, *FLAGS)} | options
    return sorted(each for each in found if each.startswith(word))


def _head(option: str) -> str:
    """An option as far as it can be completed: `model=`, `method.`."""
    name = option.partition("=")[0]
    return name.removesuffix("KEY").removesuffix("FIELD") if name.endswith((".KEY", ".FIELD")) else f"{name}="


def _values(name: str) -> Iterable[str]:
    group = name.lstrip("+")
    if group in GROUPS:
        folders = [folder / "conf" / group for folder in (Path(__file__).parent, Path(__file__).parents[1])]
        return {path.stem for folder in folders for path in folder.glob("*.yaml") if not path.stem.startswith("_")}
    option = next((option for option in RUN if option.partition("=")[0] == name), "")
    listed = RUN.get(option, "").partition("any of ")[2]  # "any of generate, latency, score, observe"
    if listed:
        return listed.split(", ")
    return [each for each in option.partition("=")[2].split("|") if each.isidentifier() and each.islower()]


def main(argv: Sequence[str] | None = None) -> int:
    """Print a shell's script, or candidates; returns the exit code."""
    return COMMAND.run(argv, _text, lambda text: print(text) if text else None)


def _text(words: list[str]) -> str:
    if words[:1] == ["of"]:
        return "\n".join(candidates(*words[1:3]))
    if len(words) != 1 or words[0] not in SHELLS:
        raise ValueError(f"which shell? {nearest(' '.join(words), SHELLS)}")
    return SHELLS[words[0]]


if __name__ == "__main__":
    sys.exit(main())
