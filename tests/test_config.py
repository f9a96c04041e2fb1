"""The configuration: every preset loads, and every mistake is named."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from genprop.config import Config, load_config, presets
from genprop.errors import GenPropError


@pytest.mark.parametrize("name", presets())
def test_every_preset_loads(name: str) -> None:
    config = load_config(name)
    assert config.name == name
    assert config.clip.frames > 1


def test_tiny_is_among_the_presets() -> None:
    assert "tiny" in presets()


def test_a_file_is_read_and_defaults_fill_it(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text('name = "own"\n[clip]\nframes = 4\nheight = 64\nwidth = 32\n[teacher]\nsteps = 7\n')
    config = load_config(path)
    assert (config.name, config.clip.width, config.teacher.steps) == ("own", 32, 7)
    assert config.loss.mask == 2.0


def test_overrides_reach_nested_values() -> None:
    before = load_config("tiny")
    after = load_config(
        "tiny",
        [
            "teacher.steps=12",
            "sce.fusion=none",
            "teacher.precision='no'",
            "teacher.betas=[0.5, 0.6]",
            "base.path=some/where",
            "base.unet.layers_per_block=2",
        ],
    )
    assert (after.teacher.steps, after.sce.fusion, after.teacher.precision) == (12, "none", "no")
    assert after.teacher.betas == (0.5, 0.6)
    assert after.base.path == "some/where"
    assert after.base.unet is not None and after.base.unet["layers_per_block"] == 2
    assert after.backbone == before.backbone and after.clip == before.clip


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("teacher.stepz=3", "teacher.stepz"),
        ("nonsense=3", "nonsense"),
        ("teacher.steps=many", "teacher.steps.*'many'"),
        ("teacher.steps=0", "teacher.steps.*greater than or equal to 1.*got 0"),
        ("sce.fusion=sideways", "sce.fusion.*'bidirectional' or 'none'.*'sideways'"),
        ("clip.frames=[1]", "clip.frames"),
        ("clip=3", "clip"),
        ("name.first=3", "'name' is not a table"),
        ("teacher.steps", "key=value, got 'teacher.steps'"),
        ("=3", "key=value, got '=3'"),
    ],
)
def test_a_wrong_override_is_named(override: str, named: str) -> None:
    with pytest.raises(GenPropError, match=named):
        load_config("tiny", [override])


def test_all_faults_are_named_at_once() -> None:
    with pytest.raises(GenPropError) as caught:
        load_config("tiny", ["teacher.stepz=3", "clip.frames=x"])
    assert "teacher.stepz" in caught.value.message and "clip.frames" in caught.value.message


def test_a_missing_file_lists_the_presets() -> None:
    with pytest.raises(GenPropError, match=r"no preset or file named 'absent\.toml'") as caught:
        load_config("absent.toml")
    assert "tiny" in caught.value.hint


@pytest.mark.parametrize("content", [b"name = ", b"\xff\xfe\x00", b"[clip\n"])
def test_a_file_that_is_not_toml_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.toml"
    path.write_bytes(content)
    with pytest.raises(GenPropError, match=r"broken\.toml is not valid TOML"):
        load_config(path)


def test_a_configuration_is_frozen() -> None:
    config = load_config("tiny")
    with pytest.raises(ValidationError, match="frozen"):
        config.teacher.steps = 3  # type: ignore[misc]


def test_a_configuration_survives_json() -> None:
    config = load_config("tiny")
    assert Config.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("override", "naming"),
    [
        ("distill.phases=50", "phases is 50, expected at most"),
        ("distill.guidance_range=[3.0, 2.0]", "guidance_range is 3.0 to 2.0"),
        ("distill.guidance_range=[-1.0, 2.0]", "guidance_range is -1.0 to 2.0"),
    ],
)
def test_a_distillation_that_makes_no_sense_is_refused(override: str, naming: str) -> None:
    with pytest.raises(GenPropError) as caught:
        load_config("tiny", [override])
    assert naming in caught.value.message
