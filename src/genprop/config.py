"""The configuration: every table of `settings` and `distill_settings`, TOML presets, `--set` overrides.

A stage's settings are in the table of its name (`autoencoder`, `backbone`, `teacher`, `student`, `decoder`);
what they share (clip, noise, loss, sampling) stands in tables of its own, so that training and inference
read the same numbers.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from genprop.distill_settings import DistillConfig, LightDecoderConfig
from genprop.errors import GenPropError
from genprop.settings import (
    BaseConfig,
    ClipConfig,
    DataConfig,
    LossConfig,
    Model,
    NetConfig,
    NoiseConfig,
    RolloutConfig,
    SamplingConfig,
    SceConfig,
    SynthesisConfig,
    TrainConfig,
)


class Config(Model):
    """A preset: everything about a model and how it is trained."""

    name: str
    clip: ClipConfig
    base: BaseConfig = BaseConfig()
    sce: SceConfig = SceConfig()
    net: NetConfig = NetConfig()
    noise: NoiseConfig = NoiseConfig()
    loss: LossConfig = LossConfig()
    sampling: SamplingConfig = SamplingConfig()
    distill: DistillConfig = DistillConfig()
    data: DataConfig = DataConfig()
    synthesis: SynthesisConfig = SynthesisConfig()
    autoencoder: TrainConfig = TrainConfig(steps=1000)
    backbone: TrainConfig = TrainConfig(steps=1000)
    carry: TrainConfig = TrainConfig(steps=1000)
    teacher: TrainConfig = TrainConfig(steps=1000)
    student: TrainConfig = TrainConfig(steps=1000)
    rollout: RolloutConfig = RolloutConfig()
    tracker: TrainConfig = TrainConfig(steps=1000)
    light: LightDecoderConfig = LightDecoderConfig()
    decoder: TrainConfig = TrainConfig(steps=1000)

    @property
    def guidance(self) -> float:
        """The guidance scale (of the last frame) where none is asked for: `sampling.guidance_max`.

        Of a network that is told its scale, the nearest to that in the range that it was told in training.
        """
        scale, (low, high) = self.sampling.guidance_max, self.distill.guidance_range
        return min(max(scale, low), high) if self.net.guidance else scale


def presets() -> list[str]:
    """Names of the presets that come with the package."""
    return sorted(
        p.name.removesuffix(".toml") for p in files("genprop.presets").iterdir() if p.name.endswith(".toml")
    )


def load_config(source: str | Path, overrides: Sequence[str] = ()) -> Config:
    """A preset by name, or a TOML file, with `--set table.key=value` overrides.

    Raises:
        GenPropError: no such preset or file, not TOML, an unknown key, a value of the wrong type.
    """
    path = Path(source)
    if str(source) in presets():
        content = files("genprop.presets").joinpath(f"{source}.toml").read_bytes()
    elif path.is_file():
        content = path.read_bytes()
    else:
        raise GenPropError(
            f"no preset or file named {str(source)!r}",
            f"presets are {', '.join(presets())}; else give a .toml file",
        )
    try:
        table = tomllib.loads(content.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise GenPropError(
            f"{source} is not valid TOML: {error}",
            "a table is [clip], a key is frames = 8, text is in quotes",
        ) from error
    for override in overrides:
        _apply(table, override)
    return parse_config(table, name=str(source))


def parse_config(table: dict[str, Any], *, name: str = "configuration") -> Config:
    """A checked `Config` of a plain table; every fault is named in one `GenPropError`."""
    try:
        return Config.model_validate(table)
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, e['loc']))}: {e['msg']} (got {e['input']!r})" for e in error.errors()
        )
        raise GenPropError(f"{name}: {faults}", "see docs/configuration.md for the keys") from error


def _apply(table: dict[str, Any], override: str) -> None:
    """Set one `a.b=value`; the value is TOML, or a bare string."""
    key, separator, value = override.partition("=")
    if not separator or not key:
        raise GenPropError(f"--set takes key=value, got {override!r}", "for example --set teacher.steps=100")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value
    *parents, leaf = key.split(".")
    for parent in parents:
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            raise GenPropError(
                f"--set {override}: {parent!r} is not a table",
                "for example --set teacher.steps=100",
            )
    table[leaf] = parsed
