"""VBench-2.0's eighteen dimensions: the group in which each counts, on how many prompts it is defined, what it reads.

Groups are from Vchitect/VBench@45e79ec, VBench-2.0/scripts/constant.py; prompts from its VBench2_full_info.json; weight
files from its utils.py and the dimensions' own code. Which dimensions score other videos is in its README.
"""

from __future__ import annotations

from functools import partial

from . import edition
from .edition import Edition, Weights

VBENCH2 = Edition(
    "VBench-2.0",
    "vbench2",
    setup="python -m pcbench.vbench setup-2.0 --python PATH --source FOLDER",
    shares=dict.fromkeys(("creativity", "commonsense", "controllability", "human_fidelity", "physics"), 1),
    characters=180,
)
Dimension = partial(edition.Dimension, edition=VBENCH2, samples=3, gpu=True)

_DRIVE = "https://drive.google.com/uc?id="
_HUB = "https://huggingface.co/"
LLAVA = (
    Weights("lmms-lab/LLaVA-Video-7B-Qwen2/model.safetensors.index.json", 0, _HUB + "lmms-lab/LLaVA-Video-7B-Qwen2"),
)
QWEN = (
    Weights("Qwen/Qwen2.5-7B-Instruct/model.safetensors.index.json", 0, _HUB + "Qwen/Qwen2.5-7B-Instruct"),
)  # fmt: skip
ANATOMY = (
    Weights(
        "YOLO-World/yolo_world_v2_xl_obj365v1_goldg_cc3mlite_pretrain-5daf1395.pth", 0,
        _DRIVE + "1qo-K1kum7yiEwIlN1TWDvABXX6qriUen",
    ),
    Weights("anomaly_detector/human.pth", 0, _DRIVE + "1mlSURYOi_vN9ST1wzEhJaVO6-ZoES8UT"),
    Weights("anomaly_detector/face.pth", 0, _DRIVE + "1e2qTjrtsYlkWLql0qj8DqaNZ09KuV8Qo"),
    Weights("anomaly_detector/hand.pth", 0, _DRIVE + "1j3QeAcAtdLe5BFgK-c33UaHV6-iUto0i"),
)  # fmt: skip
ARCFACE = Weights("arcface/resnet18_110.pth", 0, _DRIVE + "1m387vGTQ4GW4I4PQfBsCC-Y9aEp6zjvy")
RETINAFACE = Weights(
    "torch/hub/checkpoints/retinaface_resnet50_2020-07-20-f168fae3c.zip", 0,
    "https://github.com/ternaus/retinaface/releases/download/0.01/retinaface_resnet50_2020-07-20-f168fae3c.zip",
)  # fmt: skip
INSTANCES = Weights(
    "instance_anomaly_detector/model/config.json", 0,
    "https://drive.google.com/drive/folders/106rnzZvH-VUKkz8dMPFflD6tqtbSgXwh",
)  # fmt: skip
RAFT = Weights(
    "raft_model/models/raft-things.pth", 21,
    "https://dl.dropboxusercontent.com/s/4j4z58wuv8o0mfz/models.zip (unzipped in raft_model)",
)  # fmt: skip
COTRACKER = (
    Weights("torch/hub/facebookresearch_co-tracker_main/hubconf.py", 0, "https://github.com/facebookresearch/co-tracker"),
    Weights("torch/hub/checkpoints/cotracker2.pth", 0, _HUB + "facebook/cotracker/resolve/main/cotracker2.pth"),
)  # fmt: skip
VGG = Weights("torch/hub/checkpoints/vgg19-dcbb9e9d.pth", 574, "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth")

INVALID = "what it asks about is not to be seen"  # its official score is -1, and does not count

DIMENSIONS = (
    Dimension("Human_Anatomy", "human_fidelity", 120, custom=True, weights=ANATOMY),
    Dimension("Human_Identity", "human_fidelity", 46, custom=True, leaves_out=INVALID, weights=(ARCFACE, RETINAFACE)),
    Dimension("Human_Clothes", "human_fidelity", 75, custom=True, leaves_out=INVALID, weights=LLAVA),
    Dimension("Diversity", "creativity", 10, samples=20, custom=True, gpu=False, together=True, weights=(VGG,)),
    Dimension("Composition", "creativity", 53, weights=LLAVA),
    Dimension("Dynamic_Spatial_Relationship", "controllability", 69, weights=LLAVA),
    Dimension("Dynamic_Attribute", "controllability", 91, weights=LLAVA),
    Dimension("Motion_Order_Understanding", "controllability", 99, leaves_out=INVALID, weights=LLAVA + QWEN),
    Dimension("Human_Interaction", "controllability", 100, weights=LLAVA + QWEN),
    Dimension("Complex_Landscape", "controllability", 30, weights=LLAVA + QWEN),
    Dimension("Complex_Plot", "controllability", 60, weights=LLAVA + QWEN),
    Dimension("Camera_Motion", "controllability", 108, weights=COTRACKER),
    Dimension("Motion_Rationality", "commonsense", 58, weights=LLAVA),
    Dimension("Instance_Preservation", "commonsense", 57, weights=(INSTANCES,)),
    Dimension("Mechanics", "physics", 57, leaves_out=INVALID, weights=LLAVA),
    Dimension("Thermotics", "physics", 50, leaves_out=INVALID, weights=LLAVA),
    Dimension("Material", "physics", 50, leaves_out=INVALID, weights=LLAVA),
    Dimension("Multi-View_Consistency", "physics", 97, custom=True, leaves_out=INVALID, weights=(RAFT, *COTRACKER)),
)
