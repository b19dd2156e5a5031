r"""Make a diffusers pipeline folder from local copies of Open-Sora 1.2's published checkpoints.

    python -m pcbench.backbones.opensora.convert --transformer OpenSora-STDiT-v3 --vae OpenSora-VAE-v1.2 \
        --text-encoder t5-v1_1-xxl --out opensora

The repositories are hpcai-tech/OpenSora-STDiT-v3, hpcai-tech/OpenSora-VAE-v1.2 and DeepFloyd/t5-v1_1-xxl, as in
hpcaitech/Open-Sora v1.2, configs/opensora-v1-2/inference/sample.py. Weights may be .safetensors, .bin, .pt or .pth.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, T5EncoderModel

from ..checkpoints import DTYPES, filled, read_weights
from .convert_keys import convert_transformer, rename_transformer_key
from .pipeline import OpenSoraPipeline
from .scheduler import rectified_flow_scheduler
from .transformer import STDiT3Transformer3DModel
from .vae import AutoencoderOpenSora

NAME = "Open-Sora 1.2"
SAME_FIELDS = ("caption_channels", "in_channels", "input_sq_size", "mlp_ratio", "patch_size", "qk_norm")
OTHER_FIELDS = {"depth": "num_layers", "num_heads": "num_attention_heads", "model_max_length": "max_sequence_length"}
TEMPORAL_NAMES = (  # patterns of the published temporal VAE's names, and our names for them; applied in order
    (r"\.conv\.(weight|bias)$", r".\1"),  # upstream's causal convolution holds a convolution, ours is one
    (r"\.conv3\.", ".shortcut."),
    (r"^encoder\.conv2\.", "encoder.conv_out."),
    (r"^decoder\.conv1\.", "decoder.conv_in."),
    (r"^(encoder|decoder)\.norm1\.", r"\1.norm_out."),
    (r"^(encoder|decoder)\.res_blocks\.", r"\1.mid."),
    (r"^(encoder|decoder)\.block_res_blocks\.", r"\1.levels."),
    (r"^encoder\.conv_blocks\.", "encoder.resamplers."),
)


def rename_vae_key(key: str) -> str:
    """Our name for a weight of the published VAE. Raises KeyError for a weight of neither of its two parts."""
    if key.startswith("spatial_vae.module."):
        return key.replace("spatial_vae.module", "spatial", 1)
    if not key.startswith("temporal_vae."):
        raise KeyError(f"{key} is not a weight of Open-Sora's VAE 1.2")
    name = key.removeprefix("temporal_vae.")
    for pattern, replacement in TEMPORAL_NAMES:
        name = re.sub(pattern, replacement, name)
    # the decoder's first level has no resampler, so upstream counts resamplers from the second level
    return re.sub(r"^decoder\.conv_blocks\.(\d+)", lambda n: f"decoder.resamplers.{int(n[1]) + 1}.conv", name)


def load_transformer(folder: str | Path) -> STDiT3Transformer3DModel:
    """The transformer of a published folder. Raises ValueError that names every missing or unknown weight."""
    state = read_weights(folder)
    unknown = {key: state.pop(key) for key in list(state) if not _has_name(rename_transformer_key, key)}
    model = STDiT3Transformer3DModel(**transformer_config(Path(folder) / "config.json"))
    return filled(model, convert_transformer(state), NAME, folder, unknown)


def transformer_config(path: Path) -> dict[str, Any]:
    """Our config from upstream's config.json. Missing fields, or all without a file, default to STDiT3-XL/2's."""
    upstream = json.loads(path.read_text()) if path.exists() else {}
    config = {name: upstream[name] for name in SAME_FIELDS if name in upstream}
    config |= {name: upstream[other] for other, name in OTHER_FIELDS.items() if other in upstream}
    if "hidden_size" in upstream:
        config["attention_head_dim"] = upstream["hidden_size"] // upstream.get("num_heads", 16)
    config["out_channels"] = upstream.get("in_channels", 4) * (2 if upstream.get("pred_sigma", True) else 1)
    return config


def load_vae(folder: str | Path, config: Mapping[str, Any] | None = None) -> AutoencoderOpenSora:
    """The VAE of a published folder with its shift and scale; `config` is for a size other than the published one.

    Raises ValueError that names every missing or unknown weight.
    """
    state = read_weights(folder)
    settings: dict[str, Any] = dict(config or {})
    settings |= {
        name: [round(value, 6) for value in state.pop(name).flatten().tolist()]  # float32's digits, not its noise
        for name in ("shift", "scale")
        if name in state
    }
    unknown = {key: state.pop(key) for key in list(state) if not _has_name(rename_vae_key, key)}
    renamed = {rename_vae_key(key): value for key, value in state.items()}
    return filled(AutoencoderOpenSora(**settings), renamed, NAME, folder, unknown)


def _has_name(rename: Callable[[str], Any], key: str) -> bool:
    try:
        rename(key)
    except KeyError:
        return False
    return True


def convert(
    transformer: str | Path,
    vae: str | Path,
    text_encoder: str | Path,
    out: str | Path,
    dtype: torch.dtype = torch.bfloat16,
    vae_config: Mapping[str, Any] | None = None,
) -> OpenSoraPipeline:
    """Write the pipeline folder `out` from three published folders, and return the pipeline."""
    pipe = OpenSoraPipeline(
        transformer=load_transformer(transformer).to(dtype),
        scheduler=rectified_flow_scheduler(),
        vae=load_vae(vae, vae_config).to(dtype),
        tokenizer=AutoTokenizer.from_pretrained(text_encoder),
        text_encoder=T5EncoderModel.from_pretrained(text_encoder, dtype=dtype),
    )
    pipe.save_pretrained(out)
    return pipe


def main(arguments: list[str] | None = None) -> None:
    """The command line; an error is printed as one line, with exit code 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("transformer", "vae", "text-encoder"):
        parser.add_argument(f"--{name}", type=Path, required=True, help="a folder")
    parser.add_argument("--out", type=Path, required=True, help="the folder to make")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="in which the weights are saved")
    args = parser.parse_args(arguments)
    try:
        for folder in (args.transformer, args.vae, args.text_encoder):
            if not folder.is_dir():
                raise ValueError(f"no such folder: {folder}")
        convert(args.transformer, args.vae, args.text_encoder, args.out, getattr(torch, args.dtype))
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {str(error).strip().splitlines()[0]}", file=sys.stderr)
        raise SystemExit(2) from error
    print(f"made {args.out}: use it with model=opensora model.backbone.source={args.out}")


if __name__ == "__main__":
    main()
