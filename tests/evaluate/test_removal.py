"""Pasted removals, what is unseen in them, and the `eval` command over small clips of its own making."""

from __future__ import annotations

import json
from collections import Counter
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from genprop.cli import app
from genprop.cli_eval import clips_left_out, table
from genprop.data.corpus import RealClip, open_corpus
from genprop.errors import GenPropError
from genprop.evaluate.hidden import unseen
from genprop.evaluate.methods import NAMES, check_names, known_names, methods
from genprop.evaluate.real import run_pasted, run_tracked
from genprop.evaluate.removal import Removal, pasted_removals
from genprop.evaluate.scores import CAP, clip_figures
from genprop.guide.geometry import grow
from genprop.video import write_clip

SIZE = (96, 160)
FRAMES = 8


def texture(seed: int, *, height: int, width: int) -> np.ndarray:
    """Smooth noise with corners to follow, uint8 `[height, width, 3]`."""
    noise = np.random.default_rng(seed).normal(0, 1, (height, width, 3)).astype(np.float32)
    noise = cv2.GaussianBlur(noise, (0, 0), 2.5)
    return (128 + 45 * noise / noise.std()).clip(0, 255).astype(np.uint8)


def panned(seed: int, *, frames: int = FRAMES, speed: float = 0.0) -> np.ndarray:
    """A camera that moves to the left by `speed` pixels a frame: new ground enters at the left."""
    height, width = SIZE
    wide = texture(seed, height=height, width=width + 120)
    shift = [np.array([[1, 0, -60 + speed * t], [0, 1, 0]]) for t in range(frames)]
    return np.stack([cv2.warpAffine(wide, matrix, (width, height)) for matrix in shift])


def square(*, frames: int = FRAMES, left: float = 50, speed: float = 3, side: int = 24) -> np.ndarray:
    """The mask of a square that moves to the right."""
    mask = np.zeros((frames, *SIZE), bool)
    for t in range(frames):
        x = round(left + speed * t)
        mask[t, 36 : 36 + side, max(0, x) : max(0, x + side)] = True
    return mask


def recorded(name: str, seed: int, mask: np.ndarray | None = None, *, frames: int = FRAMES) -> RealClip:
    return RealClip(name, panned(seed, frames=frames), () if mask is None else (mask,))


CLIPS = (
    recorded("car", 1, square()),
    recorded("cat", 2, square(left=30, speed=5, side=20)),
    recorded("meadow", 3),
    recorded("street", 4),
)


def removal_of(truth: np.ndarray, hole: np.ndarray) -> Removal:
    video = np.where(hole[..., None], 255, truth).astype(np.uint8)
    return Removal("x on y", video, truth, hole, hole, {})


def write_folder(root: Path) -> Path:
    """The clips as a folder of them."""
    for clip in CLIPS:
        folder = root / clip.name
        folder.mkdir(parents=True)
        write_clip(folder / "video.mp4", clip.frames, fps=Fraction(8))
        for index, mask in enumerate(clip.masks):
            levels = np.repeat(mask[..., None].astype(np.uint8) * 255, 3, axis=-1)
            write_clip(folder / f"mask-{index}.mp4", levels, fps=Fraction(8))
    return root


def test_pairs_are_a_function_of_the_seed() -> None:
    one, again, other = (list(pasted_removals(CLIPS, pairs=4, frames=6, seed=seed)) for seed in (3, 3, 4))
    assert [r.recipe for r in one] == [r.recipe for r in again]
    for a, b in zip(one, again, strict=True):
        np.testing.assert_array_equal(a.video, b.video)
    assert [r.recipe for r in one] != [r.recipe for r in other]
    longer = list(pasted_removals(CLIPS, pairs=6, frames=6, seed=3))
    assert [r.recipe for r in longer[:4]] == [r.recipe for r in one]


def test_objects_and_grounds_come_as_often_as_one_another() -> None:
    pairs = list(pasted_removals(CLIPS, pairs=12, frames=3, seed=0))
    assert all(r.recipe["source"] != r.recipe["ground"] for r in pairs)
    assert Counter(r.recipe["source"] for r in pairs) == {"car": 6, "cat": 6}
    # Six pairings there are, of two objects and three grounds each: in twelve, none comes a third time.
    assert list(Counter(r.name for r in pairs).values()) == [2] * 6
    grounds = Counter(r.recipe["ground"] for r in pairs[:4])
    assert len(grounds) >= 3
    assert sum(r.recipe["natural"] for r in pairs) == 6
    assert sum(r.recipe["shadow"] for r in pairs) == 4


def test_the_truth_is_the_ground_and_the_video_differs_from_it_in_the_hole_alone() -> None:
    grounds = {clip.name: clip.frames for clip in CLIPS}
    for removal in pasted_removals(CLIPS, pairs=6, frames=5, seed=1):
        ground, start = grounds[removal.recipe["ground"]], removal.recipe["onto"]
        np.testing.assert_array_equal(removal.truth, ground[start : start + 5])
        changed = (removal.video != removal.truth).any(axis=-1)
        assert not (changed & ~removal.hole).any()
        assert changed[removal.mask].mean() > 0.9
        grown = np.stack([grow(frame, 3) for frame in removal.mask])
        assert not (grown & ~removal.hole).any()
        assert removal.mask[0].sum() >= 300 and removal.video.dtype == np.uint8


def test_a_natural_object_lies_where_it_was_and_another_lies_inside_the_first_frame() -> None:
    masks = {clip.name: clip.masks[0] for clip in CLIPS if clip.masks}
    for removal in pasted_removals(CLIPS, pairs=12, frames=4, seed=5):
        recipe = removal.recipe
        if recipe["natural"]:
            assert recipe["scale"] == 1 and not recipe["mirrored"]
            own = masks[recipe["source"]][recipe["from"] : recipe["from"] + 4]
            assert not (own & ~removal.mask).any()
        else:
            assert 0.5 <= recipe["scale"] <= 1.3
            border = removal.mask[0].copy()
            border[1:-1, 1:-1] = False
            assert recipe["shadow"] or not border.any()


def test_an_object_that_its_clip_cuts_off_stays_where_it_was() -> None:
    leaving = recorded("train", 7, square(left=-10, speed=0, side=60))
    removals = pasted_removals([leaving, CLIPS[3]], pairs=4, frames=4, seed=0)
    assert all(removal.recipe["natural"] for removal in removals)


def test_an_object_too_large_to_stay_where_it_was_is_laid_at_another_size() -> None:
    mask = np.zeros((FRAMES, *SIZE), bool)
    mask[:, 4:-4, 30:-30] = True
    removals = list(pasted_removals([recorded("house", 8, mask), CLIPS[3]], pairs=2, frames=4, seed=0))
    assert not any(removal.recipe["natural"] for removal in removals)
    assert all(removal.recipe["scale"] < 0.8 for removal in removals)


def test_an_object_that_fits_nowhere_is_refused() -> None:
    speck = np.zeros((FRAMES, *SIZE), bool)
    speck[:, 10:14, 10:14] = True
    with pytest.raises(GenPropError, match="object 0 of fly covers less than 300 pixels"):
        next(pasted_removals([recorded("fly", 9, speck), CLIPS[3]], pairs=1, frames=4, seed=0))


@pytest.mark.parametrize("clips", [CLIPS[:1], CLIPS[2:], ()])
def test_too_few_clips_or_objects_are_refused(clips: tuple[RealClip, ...]) -> None:
    with pytest.raises(GenPropError, match="expected two clips and an object"):
        pasted_removals(clips, pairs=1, frames=4, seed=0)


def test_clips_that_are_too_short_are_refused() -> None:
    with pytest.raises(GenPropError, match="0 clips of at least 24 frames"):
        pasted_removals(CLIPS, pairs=1, frames=24, seed=0)


def test_nothing_is_unseen_over_a_still_ground() -> None:
    """The edited first frame shows all of it, whether the object moves or not."""
    still = panned(5)
    for speed in (0, 4):
        assert not unseen(removal_of(still, square(speed=speed))).any()


def test_ground_that_enters_behind_an_object_is_unseen() -> None:
    """A bar 20 pixels wide at the border where new ground enters at 1.5 pixels a frame: it is never shown."""
    truth, hole = panned(6, frames=9, speed=1.5), square(frames=9, left=0, speed=0, side=20)
    hidden = unseen(removal_of(truth, hole))
    assert not hidden[0].any() and not (hidden & ~hole).any()
    for t in (4, 8):
        expected = np.zeros(SIZE, bool)
        expected[36:56, : round(1.5 * t)] = True
        union = (expected | hidden[t]).sum()
        assert (expected & hidden[t]).sum() / union > 0.6
    # Half of the height lies free: what enters there is seen, and so is what had passed before it was hidden.
    assert not hidden[:, :36].any() and not hidden[:, 56:].any()


def test_slow_ground_that_enters_is_unseen_too() -> None:
    """Motion of less than half a pixel a frame adds up."""
    truth, hole = panned(6, frames=20, speed=0.4), square(frames=20, left=0, speed=0, side=20)
    assert 0.6 < unseen(removal_of(truth, hole))[19].sum() / (20 * 0.4 * 19) < 1.4


def test_what_a_later_frame_shows_is_seen() -> None:
    """The bar uncovers what entered behind it, by moving on."""
    truth, hole = panned(6, frames=9, speed=1.5), square(frames=9, left=0, speed=0, side=20)
    hole[6:] = np.roll(hole[6:], 60, axis=2)
    staying, leaving = (
        unseen(removal_of(truth, h)) for h in (square(frames=9, left=0, speed=0, side=20), hole)
    )
    assert staying[3].sum() > 40 and leaving[3].sum() < 10


def test_what_something_of_the_ground_covered_is_unseen() -> None:
    """A block of the ground's own moves on; what it uncovers in the hole, no frame shows."""
    block, truth = texture(11, height=40, width=40), panned(5)
    for t, frame in enumerate(truth):
        frame[30:70, 40 + 6 * t : 80 + 6 * t] = block
    hole = np.zeros((FRAMES, *SIZE), bool)
    hole[:, 38:62, 46:70] = True
    hidden = unseen(removal_of(truth, hole))
    assert hidden[7, 40:60, 48:68].mean() > 0.6
    hole[7] = False  # the last frame shows what was uncovered there
    assert unseen(removal_of(truth, hole))[6, 40:60, 48:68].mean() < 0.1


def test_rows_of_the_baselines() -> None:
    removal = next(pasted_removals(CLIPS, pairs=1, frames=4, seed=0))
    rows = methods(("identity", "frozen", "telea", "shiftmap"), None, steps=None)
    assert list(rows) == ["identity", "frozen", "telea", "shiftmap"]
    figures = {}
    for name, method in rows.items():
        done = method(removal)
        assert done.mask is None and done.frames.shape == removal.video.shape and done.seconds >= 0
        hidden = np.zeros_like(removal.hole)
        figures[name] = clip_figures(done.frames, removal.truth, hole=removal.hole, unseen=hidden)
    # The grounds stand still: what is kept is exact, and so is the frozen first frame.
    assert figures["identity"]["keep"] == figures["telea"]["keep"] == figures["shiftmap"]["keep"] == CAP
    assert figures["frozen"]["hole"] == CAP
    holes = [figures[name]["hole"] for name in ("identity", "telea", "shiftmap")]
    assert len(set(holes)) == 3 and max(holes) < 30
    assert all(np.isnan(row["unseen"]) for row in figures.values())


def test_rows_with_a_model_are_refused_without_one() -> None:
    assert known_names(has_model=True) == NAMES
    assert known_names(has_model=False) == (
        "identity", "frozen", "telea", "shiftmap", "guide", "guide, masks given",
    )  # fmt: skip
    for name, hint in (("guide+model", "--model"), ("magic", "as in the table")):
        with pytest.raises(GenPropError, match=f"no method '{name.replace('+', '[+]')}'") as refused:
            check_names([name], has_model=False)
        assert hint in refused.value.hint


def test_the_document_of_pasted_removals(tmp_path: Path) -> None:
    said: list[str] = []
    document = run_pasted(
        CLIPS, ("identity", "frozen", "telea"), None, pairs=2, frames=3, seed=0, steps=None, out=tmp_path,
        say=said.append,
    )  # fmt: skip
    json.dumps(document, allow_nan=False)
    assert document["rows"]["identity"]["keep"] == [CAP] * 3
    assert document["rows"]["telea"]["better_than_frozen"] == 0
    assert document["rows"]["frozen"]["better_than_telea"] == 2
    assert (
        document["rows"]["frozen"]["unseen"] == [None] * 3 and document["rows"]["frozen"]["unseen_pairs"] == 0
    )
    assert [len(clips) for clips in document["clips"].values()] == [2, 2, 2]
    assert {"source", "ground", "scale", "shadow", "unseen"} <= document["pairs"][0].keys()
    assert document["hardware"]["cores"] and document["versions"] and document["peak_memory_mb"] > 1
    assert len(said) == 2 and len(list(tmp_path.glob("*.png"))) == 2


def test_tracked_clips_without_an_object_in_the_first_frame_are_refused(tmp_path: Path) -> None:
    late = square()
    late[0] = False
    said: list[str] = []
    with pytest.raises(GenPropError, match="none of 2 clips has two frames and an object"):
        run_tracked([recorded("late", 1, late), CLIPS[2]], most=None, out=tmp_path, say=said.append)
    assert len(said) == 1 and "late" in said[0]


def test_the_masks_of_a_natural_object_are_followed(tmp_path: Path) -> None:
    """A bright square over a still ground, whose first frame is painted by the tool itself."""
    mask = square(frames=5)
    frames = np.where(mask[..., None], np.array([250, 240, 40], np.uint8), panned(3, frames=5))
    document = run_tracked([RealClip("car", frames, (mask, mask))], most=4, out=tmp_path, say=lambda _: None)
    assert document["rows"].keys() == {"car, 0", "car, 1", "mean"}
    row = document["rows"]["car, 0"]
    assert row["frames"] == 4 and row["iou_lowest"] <= row["iou"] <= 1 and row["iou"] > 0.8
    assert document["rows"]["mean"]["iou"] == pytest.approx(row["iou"])
    assert table(document).row_count == 3 and len(list(tmp_path.glob("car-*.png"))) == 2


def test_the_command_prints_one_document(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "clips")
    options = ["--pairs", "1", "--frames", "4", "--method", "telea", "--only", "c*", "--model", "none"]
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["eval", "--clips", str(folder), *options, "--out", str(out), "--json"])
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["protocol"] == "pasted" and document["rows"].keys() == {"telea"}
    assert {document["pairs"][0]["source"], document["pairs"][0]["ground"]} == {"car", "cat"}
    assert json.loads((out / "eval.json").read_text()) == document
    assert "hole dB" in done.stderr and "telea" in done.stderr
    mean, low, high = document["rows"]["telea"]["hole"]
    assert f"{mean:.4g} ({low:.4g} to {high:.4g})" in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "magic"], "no method 'magic'"),
        (["--only", "tiger*"], "none of the clips of"),
        (["--exclude", "*"], "none of the clips of"),
        (["--frames", "200"], "0 clips of at least 200 frames"),
    ],
)
def test_the_command_refuses_what_it_cannot_score(tmp_path: Path, options: list[str], message: str) -> None:
    folder = write_folder(tmp_path / "clips")
    arguments = ["eval", "--clips", str(folder), "--model", "none", "--out", str(tmp_path / "out"), *options]
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, GenPropError) and message in result.exception.message
    assert result.exception.hint


def test_a_folder_without_clips_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GenPropError, match="holds no clips"):
        clips_left_out(tmp_path, only=(), exclude=())
    with pytest.raises(GenPropError, match="is not a folder"):
        clips_left_out(tmp_path / "none", only=(), exclude=())


def test_an_output_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "clips")
    (tmp_path / "file").write_text("")
    arguments = ["eval", "--clips", str(folder), "--model", "none", "--out", str(tmp_path / "file")]
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, GenPropError) and "cannot be written" in result.exception.message


@pytest.mark.slow
def test_real_clips_make_removals(shared_clips: Path) -> None:
    left_out = clips_left_out(shared_clips, only=["davis-soapbox", "boys-beach"], exclude=())
    clips = open_corpus(f"clips={shared_clips}", leave_out=left_out).clips
    assert [len(clip.masks) for clip in clips] == [2, 1]
    for removal in pasted_removals(clips, pairs=3, frames=6, seed=0):
        assert not (removal.video != removal.truth)[~removal.hole].any()
        hidden = unseen(removal)
        assert not hidden[0].any() and hidden.sum() < 0.5 * removal.hole.sum()
