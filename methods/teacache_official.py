"""TeaCache's published coefficients and thresholds, from https://github.com/ali-vilab/TeaCache at commit 7c10efc.

Coefficients are of a polynomial, highest power first. Thresholds are the two ends of what each README reports, the
paper's TeaCache-slow and TeaCache-fast.
"""

from __future__ import annotations

from dataclasses import dataclass

from .calibration import signature
from .engine.anatomy import Anatomy


@dataclass(frozen=True)
class Official:
    """One published set. `feature` is what it was fitted on; `source` a file of the repository and a line in it."""

    family: str
    feature: str
    coefficients: tuple[float, ...]
    slow: float
    fast: float
    source: str


WAN = "TeaCache4Wan2.1/teacache_generate.py"
COGVIDEOX = "TeaCache4CogVideoX1.5/teacache_sample_video.py"

SETS: dict[str, Official] = {
    "wan2.1-t2v-1.3b": Official(
        "wan", "e", (2.39676752e03, -1.31110545e03, 2.01331979e02, -8.29855975e00, 1.37887774e-01),
        0.05, 0.08, f"{WAN}:890",
    ),
    "wan2.1-t2v-14b": Official(
        "wan", "e", (-5784.54975374, 5449.50911966, -1811.16591783, 256.27178429, -13.02252404),
        0.14, 0.20, f"{WAN}:892",
    ),
    "wan2.1-i2v-480p": Official(
        "wan", "e", (-3.02331670e02, 2.23948934e02, -5.25463970e01, 5.87348440e00, -2.01973289e-01),
        0.13, 0.26, f"{WAN}:974",
    ),
    "wan2.1-i2v-720p": Official(
        "wan", "e", (-114.36346466, 65.26524496, -18.82220707, 4.91518089, -0.23412683),
        0.18, 0.30, f"{WAN}:976",
    ),
    "hunyuanvideo": Official(
        "hunyuanvideo", "modulated", (7.33226126e02, -4.01131952e02, 6.75869174e01, -3.14987800e00, 9.61237896e-02),
        0.10, 0.15, "TeaCache4HunyuanVideo/teacache_sample_video.py:102",
    ),
    "cogvideox-2b": Official(
        "cogvideox", "embedding", (-3.10658903e01, 2.54732368e01, -5.92380459e00, 1.75769064e00, -3.61568434e-03),
        0.10, 0.20, "eval/teacache/experiments/cogvideox.py:75",
    ),
    "cogvideox-5b": Official(
        "cogvideox", "embedding", (-1.53880483e03, 8.43202495e02, -1.34363087e02, 7.97131516e00, -5.23162339e-02),
        0.10, 0.20, "eval/teacache/experiments/cogvideox.py:78",
    ),
    "cogvideox1.5-5b": Official(
        "cogvideox", "embedding", (2.50210439e02, -1.65061612e02, 3.57804877e01, -7.81551492e-01, 3.58559703e-02),
        0.10, 0.30, f"{COGVIDEOX}:13",
    ),
    "cogvideox1.5-5b-i2v": Official(
        "cogvideox", "embedding", (1.22842302e02, -1.04088754e02, 2.62981677e01, -3.06009921e-01, 3.71213220e-02),
        0.10, 0.30, f"{COGVIDEOX}:14",
    ),
    "opensora-1.2": Official(
        "opensora", "modulated", (2.17546007e02, -1.18329252e02, 2.68662585e01, -4.59364272e-02, 4.84426240e-02),
        0.10, 0.20, "eval/teacache/experiments/opensora.py:77",
    ),
}  # fmt: skip

# With use_ret_steps; thresholds from the README's second table.
RETENTION_SETS: dict[str, Official] = {
    "wan2.1-t2v-1.3b": Official(
        "wan", "e0", (-5.21862437e04, 9.23041404e03, -5.28275948e02, 1.36987616e01, -4.99875664e-02),
        0.05, 0.10, f"{WAN}:883",
    ),
    "wan2.1-t2v-14b": Official(
        "wan", "e0", (-3.03318725e05, 4.90537029e04, -2.65530556e03, 5.87365115e01, -3.15583525e-01),
        0.10, 0.20, f"{WAN}:885",
    ),
    "wan2.1-i2v-480p": Official(
        "wan", "e0", (2.57151496e05, -3.54229917e04, 1.40286849e03, -1.35890334e01, 1.32517977e-01),
        0.20, 0.30, f"{WAN}:967",
    ),
    "wan2.1-i2v-720p": Official(
        "wan", "e0", (8.10705460e03, 2.13393892e03, -3.72934672e02, 1.66203073e01, -4.17769401e-02),
        0.20, 0.30, f"{WAN}:969",
    ),
}  # fmt: skip


def set_of(anatomy: Anatomy) -> str | None:
    """The name of the set published for this backbone; None if there is none.

    Wan2.2's 14B has the same signature as Wan2.1's and is taken for it. Raises ValueError where the user must choose.
    """
    config, backbone = anatomy.config, signature(anatomy)
    if backbone == "opensora-28x1152":  # it also predicts a variance, in extra channels
        return "opensora-1.2"
    more_channels = config.get("in_channels") != (config.get("out_channels") or config.get("in_channels"))
    is_image_to_video = more_channels or bool(config.get("image_condition_type"))
    if backbone == "wan-40x5120" and is_image_to_video:
        raise ValueError(
            "teacache has two coefficient sets for Wan2.1-I2V-14B:"
            " choose coefficient_set=wan2.1-i2v-480p or coefficient_set=wan2.1-i2v-720p"
        )
    if backbone == "cogvideox-42x3072":
        if config.get("patch_size_t") is None:
            return "cogvideox-5b"  # its image-to-video model has the same set
        return "cogvideox1.5-5b-i2v" if is_image_to_video else "cogvideox1.5-5b"
    text_to_video = {
        "wan-30x1536": "wan2.1-t2v-1.3b",
        "wan-40x5120": "wan2.1-t2v-14b",
        "hunyuanvideo-20x3072": "hunyuanvideo",
        "cogvideox-30x1920": "cogvideox-2b",
    }
    return None if is_image_to_video else text_to_video.get(backbone)
