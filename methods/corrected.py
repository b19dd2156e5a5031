"""Corrected reuse, a method of ours: the errors that `planned` expects, scaled by what this video shows.

`controlled` knows how wrong a line was at the last computed step, and carries the error on as if the prediction's
curvature stayed the same. `planned` knows from its calibration how the error of a line changes along the noise levels,
on the average prompt, and nothing of this one. Here the calibration gives the error's shape, and the forecast error of
each computed step, over what was expected of it, the factor that corrects it. Errors count by their gain, as in
`planned`. The rest is `controlled`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from .controlled import Controlled, ControlledConfig
from .engine.anatomy import Anatomy
from .engine.denoiser import Denoiser
from .planned import calibrated, chosen, errors_by, gain

LEAST = 1e-9  # an expected error of zero would make every correction infinite


@dataclass(kw_only=True)
class CorrectedConfig(ControlledConfig):
    """Compute a step as soon as the corrected error of reusing it, and the steps before it, reaches `tolerance`.

    calibration: of `planned`, by fingerprint or by model; None is the backbone's own.
    gain_power: how much the measured gain counts, as in `PlannedConfig`.
    """

    calibration: str | None = None
    gain_power: float = 1.0

    NAME: ClassVar[str] = "corrected"
    INERT: ClassVar = {"tolerance": 0.0, "calibration": "tiny_wan"}
    EAGER: ClassVar = {"tolerance": 0.1, "calibration": "tiny_wan"}

    def for_backbone(self, anatomy: Anatomy) -> CorrectedConfig:
        return replace(self, calibration=chosen(self.calibration, anatomy))

    def rule(self) -> Corrected:
        return Corrected(self)


class Corrected(Controlled):
    """The control for one pipeline call."""

    config: CorrectedConfig

    SCALE: ClassVar[str] = "correction"

    def __init__(self, config: CorrectedConfig) -> None:
        super().__init__(config)
        assert config.calibration is not None
        self.known = calibrated(config.calibration)

    def shape(self, denoiser: Denoiser, sigma: float, a: float, b: float) -> float:
        """The expected error (root mean square) at `sigma` of a line through levels a and b."""
        levels = (b, a, sigma)
        return max(float(errors_by(self.known, levels, levels, 1.0)[2, 1, 0]), LEAST)

    def counts(self, sigma: float) -> float:
        """The measured gain: how far the final latent moves with this one."""
        return float(gain(self.known, [sigma])[0]) ** self.config.gain_power
