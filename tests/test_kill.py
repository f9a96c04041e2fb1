"""A training that is killed from outside, ten times, at moments that it does not choose."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor

from genprop.checkpoint import list_checkpoints

KILLS = 10
STEPS = 200

# The parent imports everything once and forks a training for each life, so that ten of them take seconds.
# It waits for a random number of the child's steps, then kills: after a random part of a step, or, every
# second time, at the first of many looks that finds a checkpoint half written (every step has one).
SCRIPT = """
import json, os, random, signal, sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
import torch, torch.utils.tensorboard
from test_loop import {kind}, points
from genprop.settings import TrainConfig
from genprop.loop import fit

torch.set_num_threads(1)
out, config = Path({out!r}), TrainConfig(
    steps={steps}, batch_size=3, accumulate=2, warmup=4, ema=0.9, checkpoint_every=1, log_every=1
)

class Reporting({kind}):
    def forward(self, batch, draws):
        if report is not None:
            os.write(report, b".")
        return super().forward(batch, draws)

def train(folder):
    fit(Reporting(noise=0.1, dropout=0.2), points(22), config, folder, resume=True)

def life(folder, kill):
    # the exit code of a training in a process of its own; -9 if it was killed
    global report
    read, report = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            train(folder)
            os._exit(0)
        finally:
            os._exit(1)
    os.close(report)
    if kill:
        os.read(read, 1)
        began, count = time.perf_counter(), chance.randint(4, 16)
        for _ in range(count):
            os.read(read, 1)
        step = 2 * (time.perf_counter() - began) / count
        time.sleep(chance.uniform(0, step))
        while kill == "writing":
            os.kill(child, signal.SIGSTOP)
            os.waitpid(child, os.WUNTRACED)
            if list((folder / "checkpoints").glob("partial-*")):
                break
            os.kill(child, signal.SIGCONT)
            time.sleep(chance.uniform(0, step / 4))
        os.kill(child, signal.SIGKILL)
    else:
        while os.read(read, 1024):
            pass
    os.close(read)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

chance = random.Random(0)
codes, cut_short, reached = [], 0, []
for i in range({kills}):
    codes.append(life(out / "broken", kill="writing" if i % 2 else "anywhere"))
    cut_short += len(list((out / "broken" / "checkpoints").glob("partial-*")))
    reached.append(len((out / "broken" / "log.jsonl").read_text().splitlines()))
codes += [life(out / "broken", kill=None), life(out / "whole", kill=None)]
print(json.dumps(dict(codes=codes, cut_short=cut_short, reached=reached)))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "files"),
    [("Regression", ("weights", "ema", "optimizer")), ("Duel", ("weights", "ema", "optimizer", "objective"))],
)
def test_ten_kills_at_random_moments_leave_no_trace(
    tmp_path: Path, kind: str, files: tuple[str, ...]
) -> None:
    tests = str(Path(__file__).parent)
    script = SCRIPT.format(tests=tests, kind=kind, out=str(tmp_path), steps=STEPS, kills=KILLS)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["codes"] == [-signal.SIGKILL] * KILLS + [0, 0], done.stderr
    assert report["cut_short"] >= KILLS // 2
    assert len(set(report["reached"])) > KILLS // 2 and max(report["reached"]) < STEPS
    broken, whole = tmp_path / "broken", tmp_path / "whole"
    assert list_checkpoints(broken)[-1].name == f"step-{STEPS:08d}"
    for file in files:
        a, b = (load_file(list_checkpoints(out)[-1] / f"{file}.safetensors") for out in (broken, whole))
        assert_same(a, b)
    assert not list((broken / "checkpoints").glob("partial-*"))
    lines = [
        [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()] for out in (broken, whole)
    ]
    assert [line["step"] for line in lines[0]] == list(range(1, STEPS + 1))
    assert [line["loss"] for line in lines[0]] == [line["loss"] for line in lines[1]]


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys() and all(a[name].equal(b[name]) for name in a)
