"""A head start for the tiny VAE: initial weights that already form a block-average autoencoder.

`AutoencoderKLWan` with residual shortcuts averages on the way down and repeats on the way up. Here every other path
starts at zero, and both heads are made linear (silu(x) - silu(-x) = x, with a constant channel to steady the norm),
so that the untrained model already gives each 8x8x4 block its mean colour. From random weights, learning colours alone
took more than a thousand steps.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanAttentionBlock, WanResample, WanResidualBlock
from torch import nn

RGB, PHASES = 3, 4  # colours; pixels in a patch of 2x2
CONSTANT = 2.0
DETAIL = 0.3  # factor on the default initial weights in the channels not used here


@torch.no_grad()
def start_as_block_average(vae: AutoencoderKLWan, log_variance: float) -> None:
    """Set the weights of `vae` (is_residual, patch_size 2, two downsamplings) in place."""
    for module in vae.modules():
        if isinstance(module, WanResidualBlock):
            _zero(module.conv2)
        elif isinstance(module, WanAttentionBlock):
            _zero(module.proj)
        elif isinstance(module, WanResample):
            _zero(module.resample[1])
    for convolution in (vae.quant_conv, vae.post_quant_conv):
        _zero(convolution)
        nn.init.dirac_(convolution.weight)
    _encoder(vae, log_variance)
    _decoder(vae)


def _encoder(vae: AutoencoderKLWan, log_variance: float) -> None:
    first, last = vae.encoder.conv_in, vae.encoder.conv_out
    _clear_outputs(first, 2 * RGB + 1)
    for colour in range(RGB):
        _tap(first)[colour, colour * PHASES : (colour + 1) * PHASES] = 1 / PHASES
        _tap(first)[RGB + colour, colour * PHASES : (colour + 1) * PHASES] = -1 / PHASES
    first.bias[2 * RGB] = CONSTANT
    _clear_outputs(last, 2 * RGB)
    for colour in range(RGB):
        for half in range(2):  # the second downsampling keeps the two halves of its time window apart
            row = half * RGB + colour
            _tap(last)[row, 2 * colour + half] = 1.0
            _tap(last)[row, 2 * (RGB + colour) + half] = -1.0
    last.weight[vae.config.z_dim :] = 0
    last.bias[vae.config.z_dim :] = log_variance


def _decoder(vae: AutoencoderKLWan) -> None:
    first, last, used = vae.decoder.conv_in, vae.decoder.conv_out, 2 * RGB
    _clear_outputs(first, 2 * used + 1)
    for row in range(used):
        _tap(first)[row, row] = 1.0
        _tap(first)[used + row, row] = -1.0
    first.bias[2 * used] = CONSTANT
    narrowing = vae.decoder.up_blocks[-1].resnets[0].conv_shortcut
    _clear_outputs(narrowing, 2 * RGB + 1)
    for colour in range(RGB):
        for half in range(2):
            row = half * RGB + colour
            _tap(narrowing)[colour, row] = 0.5
            _tap(narrowing)[RGB + colour, row] = -0.5
    _tap(narrowing)[2 * RGB, 2 * used] = 1.0
    _zero(last)
    for colour in range(RGB):
        _tap(last)[colour * PHASES : (colour + 1) * PHASES, colour] = 0.5
        _tap(last)[colour * PHASES : (colour + 1) * PHASES, RGB + colour] = -0.5


def _tap(convolution: nn.Conv3d) -> torch.Tensor:
    """The (out, in) weights at the centre of a causal convolution's latest frame."""
    weight = convolution.weight
    return weight[:, :, -1, weight.shape[3] // 2, weight.shape[4] // 2]


def _zero(convolution: nn.Conv2d | nn.Conv3d) -> None:
    nn.init.zeros_(convolution.weight)
    assert convolution.bias is not None
    nn.init.zeros_(convolution.bias)


def _clear_outputs(convolution: nn.Conv3d, used: int) -> None:
    convolution.weight.mul_(DETAIL)
    convolution.weight[:used] = 0
    assert convolution.bias is not None
    convolution.bias.zero_()
