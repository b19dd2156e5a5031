"""What an edition of VBench (VBench, VBench-2.0) consists of: its dimensions, and the weights that they read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Weights:
    """A file that a dimension reads. path: relative to the weights folder. megabytes: the least size of a complete
    file, that of its parameters alone; 0 if that is not known."""

    path: str
    megabytes: float
    url: str


@dataclass(frozen=True)
class Edition:
    """VBench or VBench-2.0: a package that scores videos in an interpreter of its own.

    title: its name. package: its module's, and that of its folders under ~/.cache and ~/.cache/pcbench.
    setup: the command that makes its interpreter known. shares: the weight in its total of each group of dimensions.
    characters: of a prompt, in the name that a video must have; None: all.
    """

    title: str
    package: str
    setup: str
    shares: Mapping[str, float]
    characters: int | None = None

    def __hash__(self) -> int:
        return hash(self.package)


@dataclass(frozen=True)
class Dimension:
    """One dimension.

    group: that in whose mean it counts; i2v_subject counts in none. weight: its weight in the group.
    low, high: the raw scores that become 0 and 1.
    prompts: the number of the edition's prompts on which it is defined. samples: of each, in the official protocol.
    custom: whether videos of other prompts can be scored (human_action reads its label from VBench's file names).
    detector: whether it looks for objects with GRiT, which needs detectron2 and torchvision's compiled operators.
    gpu: whether its official code runs on a GPU alone.
    leaves_out: why it leaves out videos by definition, if it does: `color` those in which the object is not found.
    image: whether it compares a video with the image that it started from.
    together: whether all samples of a prompt are scored together, as one value; then it needs all of them.
    """

    name: str
    group: str
    prompts: int
    edition: Edition
    samples: int
    low: float = 0.0
    high: float = 1.0
    weight: float = 1.0
    custom: bool = False
    detector: bool = False
    gpu: bool = False
    leaves_out: str = ""
    image: bool = False
    together: bool = False
    weights: tuple[Weights, ...] = ()

    @property
    def official(self) -> int:
        """The number of videos in the official protocol."""
        return self.prompts * self.samples
