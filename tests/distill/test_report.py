"""What a person is shown of a run: everything that is there, and what is not, whatever a kill left behind."""

from __future__ import annotations

import json
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from genprop.config import load_config
from genprop.distill.report import figures
from genprop.distill.report.compare import compare_runs, document, named
from genprop.distill.report.page import page, paragraph, table
from genprop.distill.report.plotting import smooth
from genprop.distill.report.quality_figure import quality
from genprop.distill.report.records import QualityRow, read_run, write_quality, write_whole
from genprop.distill.report.tables import cells, configuration, duration, quality_table, words
from genprop.distill.report.write import verdict, write_report
from genprop.errors import GenPropError

FILES = ("run.json", "quality.json", "schedule.json", "rewards.json", "samples")
TEACHER = QualityRow("teacher", 50, 25, 0, 22.3, 28.6, 1.02, 1.05, math.inf, 0.85, {"hps": 0.9}, 1.0)
ROWS = [
    QualityRow("student", 1, 1, 0.5, 21.9, 28.1, 0.86, 0.93, 29.1, 0.83, {"hps": 0.8}, 0.02),
    QualityRow("student", 2, 2, 0.5, 22.1, 28.3, 0.93, 0.97, 30.4, 0.84, {"hps": 0.8}, 0.04),
    QualityRow("teacher", 2, 1, 0, 20.2, 26.4, 0.55, 0.61, 21.5, 0.7, {"hps": 0.7}, 0.04),
    TEACHER,
    QualityRow("identity", 0, hole_psnr=11.8, keep_psnr=math.inf, sharpness=1.6, motion=1.9),
    QualityRow("frozen first frame", 0, hole_psnr=20.6, keep_psnr=20.9, sharpness=1.0, motion=0.0),
]


class Seen(HTMLParser):
    """Text, headings and sources of a page; fails on a tag that is not closed in its turn."""

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.headings: list[str] = []
        self.marked: list[str] = []
        self.text = ""
        self.feed(content.decode())
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "iframe")
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.open and self.open[-1] in ("h1", "h2"):
            self.headings.append(data)
        if "mark" in self.open:
            self.marked.append(data)


def make_run(folder: Path, *overrides: str, hole: float = 21.9, sheets: int = 1) -> Path:
    """A whole run of 40 updates."""
    folder.mkdir(parents=True)
    lines: list[dict[str, Any]] = [
        {
            "step": step,
            "loss": 1 / step,
            "iou": 0.8,
            "reward_hps": -0.1 + step / 1000,
            "reward_hps_hinged": -0.1,
            "steps_per_second": 2.0,
            "memory_gb": 3.0,
            "seconds_teacher": 0.3,
            "seconds_student": 0.1,
        }
        for step in range(2, 41, 2)
    ]
    lines.insert(10, {"step": 20, "val/hole_psnr": 21.0, "val/loss/mpd": 0.1})
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = load_config("tiny", ["student.steps=40", *overrides]).model_dump(mode="json")
    about = {
        "config": config,
        "versions": {"torch": "2.13"},
        "hardware": {"cpu": "EPYC", "gpu": None},
        "teacher": "tiny-teacher",
        "data": ["procedural", "clips"],
        "seconds": 4000.0,
        "resumed_from": 20,
    }
    (folder / "run.json").write_text(json.dumps(about))
    write_quality(folder / "quality.json", [QualityRow(**{**vars(ROWS[0]), "hole_psnr": hole}), *ROWS[1:]])
    schedule = {
        "sigmas": {"1": [80.0], "2": [80.0, 3.4]},
        "eta": {"2": 0.5},
        "rows": [{"steps": 2, "mse": 0.1}],
    }
    (folder / "schedule.json").write_text(json.dumps(schedule))
    card = {"name": "hps", "source": "xswu/HPSv2", "licence": "Apache-2.0", "weight": 0.1, "hinge": True}
    (folder / "rewards.json").write_text(json.dumps([card]))
    (folder / "samples").mkdir()
    picture = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    for i in range(sheets):
        Image.fromarray(picture).save(folder / "samples" / f"step-{10 * (i + 1):08d}.png")
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_run(tmp_path_factory.mktemp("runs") / "whole", "distill.trajectory=0.5", sheets=9)
    write_report(folder)
    return folder


def test_the_page_holds_everything_and_needs_nothing(whole: Path) -> None:
    seen = Seen((whole / "report.html").read_bytes())
    assert all(source.startswith("data:image/") for source in seen.sources)
    assert sum(source.startswith("data:image/png") for source in seen.sources) == 5
    assert sum(source.startswith("data:image/jpeg") for source in seen.sources) == 6  # of nine sheets
    facts = ("40 updates", "1 h 7 min", "EPYC", "tiny-teacher", "procedural, clips", "from update 20")
    parts = ("22.10", "xswu/HPSv2", "Apache-2.0", "80, 3.4", "torch", "after 10 updates", "after 90 updates")
    assert [said for said in (*facts, *parts) if said not in seen.text] == []
    assert "Not there" not in seen.headings


def test_the_figures_lie_beside_it(whole: Path) -> None:
    names = sorted(path.name for path in (whole / "figures").iterdir())
    assert names == ["cost.png", "losses.png", "quality.png", "rewards.png", "validation.png"]
    for name in names:
        with Image.open(whole / "figures" / name) as image:
            assert image.width > 500 and len(image.convert("L").getcolors() or []) > 20


def test_what_differs_from_the_preset_is_highlighted(whole: Path) -> None:
    seen = Seen((whole / "report.html").read_bytes())
    assert seen.marked == ["trajectory = 0.5", "steps = 40"]


def test_a_log_alone_is_a_report_that_says_what_is_not_there(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 0.5}\n')
    seen = Seen(write_report(tmp_path).read_bytes())
    assert seen.headings == [tmp_path.name, "Loss", "Not there"]
    assert all(name in seen.text for name in FILES)


def test_a_run_without_a_line_is_one_that_has_just_begun(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").touch()
    assert "any line in log.jsonl" in Seen(write_report(tmp_path).read_bytes()).text


def test_what_a_kill_cut_short_is_passed_over(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    for path in (run / "log.jsonl", run / "quality.json", run / "run.json"):
        path.write_bytes(path.read_bytes()[:-20])
    sheet = run / "samples" / "step-00000010.png"
    sheet.write_bytes(sheet.read_bytes()[:60])
    (run / "rewards.json").write_text("3")
    (run / "samples" / "step-last.png").touch()
    found = read_run(run)
    assert found.updates == 38 and found.quality == [] and list(found.sheets) == [10]
    text = Seen(write_report(run).read_bytes()).text
    assert text.count("cannot be read") == 3 and "step-00000010.png cannot be read" in text


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GenPropError, match=r"has no log.jsonl, expected a run's folder"):
        write_report(tmp_path)
    with pytest.raises(GenPropError, match="is not a folder"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(GenPropError, match="expected at least 2"):
        compare_runs([tmp_path], out=tmp_path)


def test_a_report_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    write_whole(tmp_path, {"figures/a.png": b"old", "report.html": b"old"})
    (tmp_path / ".report.html.partial").mkdir()  # what stands in the way of the last file
    with pytest.raises(GenPropError, match="cannot write into"):
        write_whole(tmp_path, {"figures/a.png": b"new", "report.html": b"new"})
    assert (tmp_path / "figures" / "a.png").read_bytes() == b"old"
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["a.png"]


def test_what_a_run_says_is_text_and_not_html() -> None:
    content = page("<b>", [paragraph("<script>alert(1)</script>"), table(["<i>"], [["a < b\n<u>"]])])
    assert "alert(1)" in Seen(content).text and b"<u>" not in content


def test_students_teachers_and_truth_are_where_they_belong(whole: Path) -> None:
    figure = quality([read_run(whole)])
    assert figure is not None
    panels = {axes.get_title(loc="left"): axes for axes in figure.axes}
    student, teacher = panels["hole"].lines[:2]
    np.testing.assert_allclose(student.get_xydata(), [[1, 21.9], [2, 22.1]])  # type: ignore[arg-type]
    np.testing.assert_allclose(teacher.get_xydata(), [[2, 20.2], [50, 22.3]])  # type: ignore[arg-type]
    assert np.size(panels["endpoint"].lines[1].get_xdata()) == 1  # its own endpoint is exact
    levels = [line.get_ydata()[0] for line in panels["motion in the hole"].lines[2:]]  # type: ignore[index]
    assert levels == [1.0]
    texts = [text.get_text() for text in panels["motion in the hole"].texts]
    assert "↓ frozen first frame 0" in texts and "truth" in texts
    low, high = panels["hole"].get_ylim()
    assert low > 12 and low < 20.2 < 22.3 < high  # the identity is at the edge, not in the scale


def test_losses_are_logarithmic_where_they_can_be(whole: Path) -> None:
    figure = figures.losses([read_run(whole)])
    assert figure is not None
    scales = {axes.get_title(loc="left"): axes.get_yscale() for axes in figure.axes}
    assert scales == {"loss": "log", "iou": "linear"}


def test_rewards_have_the_teachers_line(whole: Path) -> None:
    figure = figures.rewards([read_run(whole)])
    assert figure is not None
    (axes,) = figure.axes
    dashed = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert list(dashed[0].get_ydata()) == [0.9, 0.9]  # type: ignore[arg-type]


def test_the_teachers_score_of_a_step_goes_before_the_one_of_quality(tmp_path: Path) -> None:
    lines = [{"step": n, "reward_hps": 0.1 * n, "reward_hps_teacher": 0.7} for n in (1, 2, 3)]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_quality(tmp_path / "quality.json", ROWS)
    figure = figures.rewards([read_run(tmp_path)])
    assert figure is not None
    dashed = [line for line in figure.axes[0].lines if line.get_linestyle() == "--"]
    np.testing.assert_allclose(dashed[0].get_xydata(), [[1, 0.7], [2, 0.7], [3, 0.7]])  # type: ignore[arg-type]


def test_the_time_that_no_part_claims_is_the_rest(whole: Path) -> None:
    parts = figures.parts(read_run(whole))
    assert parts == pytest.approx({"teacher": 0.3, "student": 0.1, "the rest": 0.1})
    assert list(parts)[-1] == "the rest"


def test_changes_of_the_training_are_at_their_updates(tmp_path: Path) -> None:
    settings = ("distill.trajectory=0.5", "distill.blend=0.25", "distill.adversarial.weight=0.1")
    run = read_run(make_run(tmp_path / "run", *settings))
    assert list(figures.changes(run)) == [4, 20, 30]
    assert figures.changes(read_run(make_run(tmp_path / "plain"))) == {}


def test_a_moving_average_keeps_constants_and_slopes() -> None:
    np.testing.assert_allclose(smooth(np.full(40, 3.0)), 3.0)
    line = np.arange(60.0)
    np.testing.assert_allclose(smooth(line)[3:-3], line[3:-3])
    assert np.ptp(smooth(np.random.default_rng(0).normal(size=100))) < 3


def test_the_verdict_has_the_numbers(whole: Path) -> None:
    said = verdict(read_run(whole).quality)
    assert "With 1 evaluation the student reaches 21.9 dB" in said
    assert "with 50, 22.3 dB" in said and "50 times as fast" in said and "20.6 dB" in said
    assert verdict([TEACHER]) == ""


def test_an_exact_figure_is_a_dash() -> None:
    assert cells(TEACHER, ["hps", "other"])[5:] == ["-", "0.850", "0.900", "-", "1.000"]
    assert quality_table([]) == ""


def test_settings_are_written_as_toml_has_them(whole: Path) -> None:
    text = [line for line, _ in configuration(read_run(whole))]
    assert text[0] == 'name = "tiny"' and "[distill.adapter]" in text
    assert text[text.index("[clip]") + 1] == "frames = 8" and "# path is not set" in text
    assert words([1.0, True, "a"], quoted=True) == '[1, true, "a"]' and words(None) == "-"
    assert [duration(s) for s in (12.4, 90, 7260)] == ["12 s", "2 min", "2 h 1 min"]


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    runs = [make_run(folder / "one"), make_run(folder / "two", "distill.solver=heun", hole=22.4)]
    return compare_runs(runs, out=folder / "out")


def test_a_comparison_tells_differences_and_only_those(compared: Path) -> None:
    seen = Seen(compared.read_bytes())
    assert all(source.startswith("data:image/") for source in seen.sources)
    start = seen.text.index("Settings that differ")
    settings = seen.text[start : seen.text.index("Quality", start)]
    assert settings.split("distill.")[1:] == ["solvereulerheun\n"]
    assert "22.40+0.50" in seen.text and "28.10=" in seen.text
    assert "one, after 10 updates" in seen.text and "two, after 10 updates" in seen.text
    assert seen.text.count("frozen first frame") == 1, "what the runs share is there once"
    assert "Where they ran" not in seen.headings


def test_a_comparison_is_there_for_programs(compared: Path) -> None:
    found = json.loads((compared.parent / "compare.json").read_text())
    assert [run["name"] for run in found["runs"]] == ["one", "two"]
    assert found["settings"] == {"distill.solver": ["euler", "heun"]} and found["place"] == {}
    assert [rows[0]["hole_psnr"] for rows in found["quality"].values()] == [21.9, 22.4]
    assert found["last"]["loss"] == [1 / 40, 1 / 40] and found["last_validation"]["hole_psnr"] == [21, 21]
    assert (compared.parent / "figures" / "quality.png").is_file()


def test_runs_are_compared_with_what_they_have(tmp_path: Path) -> None:
    for parent in ("a", "b", "c"):
        (tmp_path / parent / "run").mkdir(parents=True)
        (tmp_path / parent / "run" / "log.jsonl").write_text('{"step": 1, "loss": 0.5}\n')
    runs = [tmp_path / parent / "run" for parent in ("a", "b")]
    seen = Seen(compare_runs(runs, out=tmp_path).read_bytes())
    assert "Fewer than two of the runs have their settings" in seen.text
    assert "a/run: run.json" in seen.text and "b/run: run.json" in seen.text
    twice = named([read_run(runs[0]), read_run(runs[0])])
    assert [run.name for run in twice] == ["a/run (1)", "a/run (2)"]
    assert document(twice)["settings"] == {}
