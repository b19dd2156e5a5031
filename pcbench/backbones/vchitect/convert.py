r"""Make a diffusers pipeline folder from a local copy of Vchitect-2.0's published checkpoint.

    python -m pcbench.backbones.vchitect.convert --checkpoint Vchitect-2.0-2B --out vchitect

The repository is Vchitect/Vchitect-2.0-2B, with the folders that models/pipeline.py of
https://github.com/Vchitect/Vchitect-2.0 (299618f) reads: transformer, vae, scheduler, tokenizer, tokenizer_2,
tokenizer_3, text_encoder, text_encoder_2, text_encoder_3. Weights of the transformer may be .safetensors or .bin.
"""

from __future__ import annotations

import argparse
import inspect
import json
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler
from transformers import AutoTokenizer, CLIPTextModelWithProjection, T5EncoderModel

from ..checkpoints import DTYPES, filled, read_weights
from .convert_keys import rename_transformer_key
from .pipeline import VchitectPipeline
from .transformer import VchitectTransformer3DModel

TOKENIZERS = ("tokenizer", "tokenizer_2", "tokenizer_3")
MODELS = {  # all that already are of a class of diffusers or transformers
    "text_encoder": CLIPTextModelWithProjection,
    "text_encoder_2": CLIPTextModelWithProjection,
    "text_encoder_3": T5EncoderModel,
    "vae": AutoencoderKL,
}


def load_transformer(folder: str | Path) -> VchitectTransformer3DModel:
    """The transformer of a published folder. Raises ValueError that names every missing or unknown weight."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder} has no config.json")
    published = json.loads(path.read_text())
    own = set(inspect.signature(VchitectTransformer3DModel).parameters)
    model = VchitectTransformer3DModel(**{name: value for name, value in published.items() if name in own})
    layers = model.config.num_layers
    renamed = {rename_transformer_key(key, layers): value for key, value in read_weights(folder).items()}
    return filled(model, renamed, "Vchitect-2.0", folder)


def convert(checkpoint: str | Path, out: str | Path, dtype: torch.dtype = torch.bfloat16) -> VchitectPipeline:
    """Write the pipeline folder `out` from a copy of the published repository, and return the pipeline."""
    root = Path(checkpoint)
    if missing := [name for name in ("transformer", "scheduler", *TOKENIZERS, *MODELS) if not (root / name).is_dir()]:
        raise ValueError(f"{checkpoint} is no copy of the published repository: it has no {', '.join(missing)}")
    tokenizers = {name: AutoTokenizer.from_pretrained(root / name) for name in TOKENIZERS}
    models = {name: kind.from_pretrained(root / name, dtype=dtype) for name, kind in MODELS.items()}
    pipe = VchitectPipeline(
        transformer=load_transformer(root / "transformer").to(dtype),
        scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(root / "scheduler"),
        **tokenizers,
        **models,
    )
    pipe.save_pretrained(out)
    return pipe


def main(arguments: list[str] | None = None) -> None:
    """The command line; an error is printed as one line, with exit code 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help="a folder: the repository's copy")
    parser.add_argument("--out", type=Path, required=True, help="the folder to make")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="in which the weights are saved")
    args = parser.parse_args(arguments)
    try:
        convert(args.checkpoint, args.out, getattr(torch, args.dtype))
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {str(error).strip().splitlines()[0]}", file=sys.stderr)
        raise SystemExit(2) from error
    print(f"made {args.out}: use it with model=vchitect model.backbone.source={args.out}")


if __name__ == "__main__":
    main()
