"""VBench's sixteen dimensions: how each counts in the scores, on how many prompts it is defined, what it reads.

Ranges and weights are from Vchitect/VBench@45e79ec, scripts/constant.py; weight files, and where VBench 0.1.5 looks for
them, from its utils.py. A size is that of the parameters alone, so a complete file is at least that large.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..messages import ConfigError

SAMPLES = 5  # samples of every prompt in the official protocol


@dataclass(frozen=True)
class Weights:
    """A file that VBench reads. path: relative to the weights folder. megabytes: the least size of a complete file."""

    path: str
    megabytes: float
    url: str


@dataclass(frozen=True)
class Dimension:
    """One dimension.

    quality: whether it counts in Quality, or in Semantic.
    low, high: the raw scores that become 0 and 1; weight: its weight in Quality or Semantic.
    prompts: the number of VBench's prompts on which it is defined.
    custom: whether videos of other prompts can be scored (human_action reads its label from VBench's file names).
    detector: whether it looks for objects with GRiT, which needs detectron2 and torchvision's compiled operators.
    leaves_out: whether it leaves out videos by definition: `color` those in which the object is not found.
    """

    name: str
    quality: bool
    prompts: int
    low: float = 0.0
    high: float = 1.0
    weight: float = 1.0
    custom: bool = False
    detector: bool = False
    leaves_out: bool = False
    weights: tuple[Weights, ...] = ()

    @property
    def official(self) -> int:
        """The number of videos in the official protocol."""
        return self.prompts * SAMPLES


_HUB = "https://huggingface.co/OpenGVLab/VBench_Used_Models/resolve/main/"
_CLIP = "https://openaipublic.azureedge.net/clip/models/"
_BERT = "https://huggingface.co/google-bert/bert-base-uncased/resolve/main/"
CLIP_B = Weights(
    "clip_model/ViT-B-32.pt", 303,
    _CLIP + "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af/ViT-B-32.pt",
)  # fmt: skip
CLIP_L = Weights(
    "clip_model/ViT-L-14.pt", 855,
    _CLIP + "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836/ViT-L-14.pt",
)  # fmt: skip
DINO = Weights(
    "dino_model/dino_vitbase16_pretrain.pth", 343,
    "https://dl.fbaipublicfiles.com/dino/dino_vitbase16_pretrain/dino_vitbase16_pretrain.pth",
)  # fmt: skip
DINO_CODE = Weights(
    "dino_model/facebookresearch_dino_main/hubconf.py", 0, "https://github.com/facebookresearch/dino (a clone of it)"
)
AMT = Weights("amt_model/amt-s.pth", 12, "https://huggingface.co/lalala125/AMT/resolve/main/amt-s.pth")
RAFT = Weights(
    "raft_model/models/raft-things.pth", 21,
    "https://dl.dropboxusercontent.com/s/4j4z58wuv8o0mfz/models.zip (unzipped in raft_model)",
)  # fmt: skip
AESTHETIC = Weights(
    "aesthetic_model/emb_reader/sa_0_4_vit_l_14_linear.pth", 0.003,
    "https://github.com/LAION-AI/aesthetic-predictor/raw/main/sa_0_4_vit_l_14_linear.pth",
)  # fmt: skip
MUSIQ = Weights(
    "pyiqa_model/musiq_spaq_ckpt-358bb6af.pth", 109,
    "https://github.com/chaofengc/IQA-PyTorch/releases/download/v0.1-weights/musiq_spaq_ckpt-358bb6af.pth",
)  # fmt: skip
VICLIP = Weights("ViCLIP/ViClip-InternVid-10M-FLT.pth", 1710, _HUB + "ViClip-InternVid-10M-FLT.pth")
UMT = Weights(
    "umt_model/l16_ptk710_ftk710_ftk400_f16_res224.pth", 600, _HUB + "l16_ptk710_ftk710_ftk400_f16_res224.pth"
)
TAG2TEXT = Weights(
    "caption_model/tag2text_swin_14m.pth", 1500,
    "https://huggingface.co/spaces/xinyu1205/recognize-anything/resolve/main/tag2text_swin_14m.pth",
)  # fmt: skip
GRIT = Weights(
    "grit_model/grit_b_densecap_objectdet.pth", 835,
    "https://datarelease.blob.core.windows.net/grit/models/grit_b_densecap_objectdet.pth",
)  # fmt: skip
BERT_WORDS = Weights("bert/bert-base-uncased/vocab.txt", 0.2, _BERT + "vocab.txt")
BERT_CONFIG = Weights("bert/bert-base-uncased/config.json", 0, _BERT + "config.json")
BERT = Weights("bert/bert-base-uncased/pytorch_model.bin", 430, _BERT + "pytorch_model.bin")
DETECTION = (GRIT, BERT_WORDS)

_ALL = (
    Dimension("subject_consistency", True, 72, 0.1462, custom=True, weights=(DINO, DINO_CODE)),
    Dimension("background_consistency", True, 86, 0.2615, custom=True, weights=(CLIP_B,)),
    Dimension("temporal_flickering", True, 75, 0.6293, custom=True),
    Dimension("motion_smoothness", True, 72, 0.706, 0.9975, custom=True, weights=(AMT,)),
    Dimension("dynamic_degree", True, 72, weight=0.5, custom=True, weights=(RAFT,)),
    Dimension("aesthetic_quality", True, 93, custom=True, weights=(CLIP_L, AESTHETIC)),
    Dimension("imaging_quality", True, 93, custom=True, weights=(MUSIQ,)),
    Dimension("object_class", False, 79, detector=True, weights=DETECTION),
    Dimension("multiple_objects", False, 82, detector=True, weights=DETECTION),
    Dimension("human_action", False, 100, weights=(UMT,)),
    Dimension("color", False, 85, detector=True, leaves_out=True, weights=DETECTION),
    Dimension("spatial_relationship", False, 84, detector=True, weights=DETECTION),
    Dimension("scene", False, 86, high=0.8222, weights=(TAG2TEXT, BERT, BERT_CONFIG, BERT_WORDS)),
    Dimension("appearance_style", False, 90, 0.0009, 0.2855, weights=(CLIP_B,)),
    Dimension("temporal_style", False, 100, high=0.364, custom=True, weights=(VICLIP,)),
    Dimension("overall_consistency", False, 93, high=0.364, custom=True, weights=(VICLIP,)),
)
DIMENSIONS = {dimension.name: dimension for dimension in _ALL}
QUALITY = tuple(d.name for d in _ALL if d.quality)
SEMANTIC = tuple(d.name for d in _ALL if not d.quality)
GROUPS = {"all": tuple(DIMENSIONS), "quality": QUALITY, "semantic": SEMANTIC}


def expand(names: Iterable[str]) -> list[Dimension]:
    """The dimensions for names of dimensions and groups (all, quality, semantic), each once and in VBench's order.

    Raises ConfigError for an unknown name.
    """
    wanted: set[str] = set()
    for name in names:
        if name not in GROUPS and name not in DIMENSIONS:
            raise ConfigError(
                f"unknown VBench dimension {name!r}; known: {', '.join(DIMENSIONS)}; or {', '.join(GROUPS)}"
            )
        wanted.update(GROUPS.get(name, (name,)))
    return [dimension for dimension in _ALL if dimension.name in wanted]
