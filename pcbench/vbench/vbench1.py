"""VBench's sixteen dimensions, and one of VBench-I2V, which is in the same package: how each counts in the scores, on
how many prompts it is defined, what it reads.

Ranges and weights are from Vchitect/VBench@45e79ec, scripts/constant.py; weight files, and where VBench 0.1.5 looks for
them, from its utils.py.
"""

from __future__ import annotations

from functools import partial

from . import edition
from .edition import Edition, Weights

VBENCH = Edition("VBench", "vbench", setup="python -m pcbench.vbench setup", shares={"quality": 4, "semantic": 1})
Dimension = partial(edition.Dimension, edition=VBENCH, samples=5)

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

DIMENSIONS = (
    Dimension("subject_consistency", "quality", 72, low=0.1462, custom=True, weights=(DINO, DINO_CODE)),
    Dimension("background_consistency", "quality", 86, low=0.2615, custom=True, weights=(CLIP_B,)),
    Dimension("temporal_flickering", "quality", 75, low=0.6293, custom=True),
    Dimension("motion_smoothness", "quality", 72, low=0.706, high=0.9975, custom=True, weights=(AMT,)),
    Dimension("dynamic_degree", "quality", 72, weight=0.5, custom=True, weights=(RAFT,)),
    Dimension("aesthetic_quality", "quality", 93, custom=True, weights=(CLIP_L, AESTHETIC)),
    Dimension("imaging_quality", "quality", 93, custom=True, weights=(MUSIQ,)),
    Dimension("object_class", "semantic", 79, detector=True, weights=DETECTION),
    Dimension("multiple_objects", "semantic", 82, detector=True, weights=DETECTION),
    Dimension("human_action", "semantic", 100, weights=(UMT,)),
    Dimension("color", "semantic", 85, detector=True, leaves_out="its object was not found", weights=DETECTION),
    Dimension("spatial_relationship", "semantic", 84, detector=True, weights=DETECTION),
    Dimension("scene", "semantic", 86, high=0.8222, weights=(TAG2TEXT, BERT, BERT_CONFIG, BERT_WORDS)),
    Dimension("appearance_style", "semantic", 90, low=0.0009, high=0.2855, weights=(CLIP_B,)),
    Dimension("temporal_style", "semantic", 100, high=0.364, custom=True, weights=(VICLIP,)),
    Dimension("overall_consistency", "semantic", 93, high=0.364, custom=True, weights=(VICLIP,)),
    Dimension("i2v_subject", "image", 246, custom=True, image=True, weights=(DINO, DINO_CODE)),
)
