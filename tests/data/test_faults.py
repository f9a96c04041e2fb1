"""The log of faults: one line for each clip, whoever reports it."""

from __future__ import annotations

import json
import logging
import multiprocessing
import pickle
from pathlib import Path

import pytest

from genprop.data.faults import FaultLog


def lines(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def report_all(log: FaultLog, start: int) -> None:
    for i in range(60):
        log.report(f"clip-{(start + i) % 60}", source="data", fault="truncated " * 20, action="skipped")


def test_a_fault_is_one_line_and_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = FaultLog(tmp_path / "run" / "faults.jsonl")
    for _ in range(2):
        log.report("bear", source="DAVIS", fault="zero bytes", action="skipped")
        log.report("bear", source="other", fault="10 bit", action="read")
    assert lines(tmp_path / "run" / "faults.jsonl") == [
        {"clip": "bear", "source": "DAVIS", "fault": "zero bytes", "action": "skipped"},
        {"clip": "bear", "source": "other", "fault": "10 bit", "action": "read"},
    ]
    assert [record.getMessage() for record in caplog.records] == [
        "skipped bear, a clip of DAVIS: zero bytes",
        "read bear, a clip of other: 10 bit",
    ]
    assert all(record.levelno == logging.WARNING for record in caplog.records)
    assert log.counts() == {"skipped": 1, "read": 1}


def test_a_resumed_run_says_nothing_twice(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "faults.jsonl"
    FaultLog(path).report("a", source="s", fault="x", action="skipped")
    caplog.clear()
    again = FaultLog(path)
    assert again.counts() == {"skipped": 1}
    again.report("a", source="s", fault="x", action="skipped")
    again.report("b", source="s", fault="x", action="skipped")
    assert [line["clip"] for line in lines(path)] == ["a", "b"]
    assert len(caplog.records) == 1
    assert FaultLog(tmp_path / "none.jsonl").counts() == {}


def test_two_logs_of_one_file_know_of_each_other(tmp_path: Path) -> None:
    path = tmp_path / "faults.jsonl"
    one, two = FaultLog(path), FaultLog(path)
    for log in (one, two, one):
        for clip in ("a", "b"):
            log.report(clip, source="s", fault="x", action="skipped")
    one.report("c", source="s", fault="x", action="skipped")
    assert len(lines(path)) == 3 and two.counts() == one.counts() == {"skipped": 3}


def test_a_line_that_a_kill_cut_short_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "faults.jsonl"
    path.write_text('{"clip": "a", "source": "s", "fault": "x", "action": "skipped"}\n{"clip": "b", "so')
    log = FaultLog(path)
    for clip in "abc":
        log.report(clip, source="s", fault="x", action="skipped")
    whole = path.read_text().splitlines()
    assert [json.loads(line)["clip"] for line in (whole[0], *whole[2:])] == ["a", "b", "c"]
    assert FaultLog(path).counts() == {"skipped": 3}


def test_without_a_file_there_are_warnings_only(caplog: pytest.LogCaptureFixture) -> None:
    log = FaultLog()
    for _ in range(2):
        log.report("a", source="s", fault="x", action="skipped")
    assert len(caplog.records) == 1 and log.counts() == {"skipped": 1}


def test_many_processes_share_a_file(tmp_path: Path) -> None:
    path = tmp_path / "faults.jsonl"
    context = multiprocessing.get_context("fork")
    log = pickle.loads(pickle.dumps(FaultLog(path)))
    processes = [context.Process(target=report_all, args=(log, 15 * i)) for i in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    found = lines(path)
    assert len(found) == 60 and {line["clip"] for line in found} == {f"clip-{i}" for i in range(60)}
