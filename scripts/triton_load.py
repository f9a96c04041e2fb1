"""A real Triton server under load: every answer compared bit for bit with what this process makes itself.

    pip download --no-deps nvidia-pytriton && unzip nvidia_pytriton-*.whl -d pytriton
    python scripts/triton_load.py models --tritonserver pytriton --clients 8 --seconds 60

`models` is what `genprop export --triton` wrote. The server is started on a loopback port with the Python
that runs this script, and is killed at the end. Compared with is `genprop.load(...)` of the export inside
the repository, which is what `genprop run` calls. Each client sends clips, seeds and numbers of steps of its
own. Prints one JSON document; exits 1 if a request failed or a frame was wrong.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from triton_client import Refused, infer

import genprop

LOOPBACK = "127.0.0.1"


@contextmanager
def running(
    repository: Path, tritonserver: Path, *, log: Path, timeout: float = 300
) -> Iterator[tuple[int, int]]:
    """A server of the model `genprop` alone; gives its process id and port once it is ready, and kills it.

    Args:
        tritonserver: the unpacked wheel `nvidia-pytriton`.
        log: file for what the server says.
    """
    root = tritonserver.resolve() / "pytriton" / "tritonserver"
    libraries = tritonserver.resolve() / "nvidia_pytriton.libs"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    with socket.socket() as free, tempfile.TemporaryDirectory() as scratch, log.open("w") as output:
        free.bind((LOOPBACK, 0))
        port = free.getsockname()[1]
        free.close()
        # The stub of this Python has to lie beside the backend; unzipping has lost who may be executed.
        backend = Path(shutil.copytree(root / "backends" / "python", Path(scratch) / "python"))
        stub = root / "python_backend_stubs" / version / "triton_python_backend_stub"
        server = Path(scratch) / "tritonserver"
        for file, target in ((root / "bin" / server.name, server), (stub, backend / stub.name)):
            shutil.copy(file, target)
            target.chmod(0o755)
        environment = {
            **os.environ,
            # The stub ignores PYTHONPATH: the first python3 of PATH is its own, with the packages of that.
            "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}",
            "LD_LIBRARY_PATH": f"{libraries}:{sysconfig.get_config_var('LIBDIR')}",
        }
        command = [
            str(server),
            f"--model-repository={repository.resolve()}",
            f"--backend-directory={scratch}",
            "--model-control-mode=explicit",
            "--load-model=genprop",
            "--disable-auto-complete-config",  # it is complete; asking the model would import torch twice
            f"--http-address={LOOPBACK}",
            f"--http-port={port}",
            "--allow-grpc=false",
            "--allow-metrics=false",
        ]
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            wait_until_ready(process, port, timeout=timeout, log=log)
            yield process.pid, port
        finally:
            process.terminate()
            try:
                process.wait(60)  # killed earlier, it leaves its shared memory behind
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)  # its own group: the server and its instances
                process.wait()


def wait_until_ready(process: subprocess.Popen[bytes], port: int, *, timeout: float, log: Path) -> None:
    """Return when the server is ready, or raise `RuntimeError` with the end of its log."""
    end = time.monotonic() + timeout
    while time.monotonic() < end and process.poll() is None:
        connection = http.client.HTTPConnection(LOOPBACK, port, timeout=5)
        try:
            connection.request("GET", "/v2/health/ready")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        finally:
            connection.close()
        time.sleep(0.2)
    said = log.read_text(errors="replace")[-4000:]
    raise RuntimeError(f"the server was not ready after {timeout:g} s, or has ended:\n{said}")


def megabytes(pid: int) -> float:
    """Resident memory of a process and all below it; what they share counts once for each (Linux)."""
    children: dict[int, list[int]] = {}
    sizes: dict[int, float] = {}
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            values = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        except OSError:
            continue
        children.setdefault(int(values["PPid"]), []).append(int(values["Pid"]))
        sizes[int(values["Pid"])] = int(values.get("VmRSS", "0").split()[0]) / 1024
    total, waiting = 0.0, [pid]
    while waiting:
        one = waiting.pop()
        total += sizes.get(one, 0.0)
        waiting += children.get(one, [])
    return round(total, 1)


@dataclass(frozen=True)
class Case:
    """What is sent, and what has to come back."""

    inputs: dict[str, np.ndarray]
    frames: np.ndarray
    mask: np.ndarray


def make_case(model: Any, random: np.random.Generator) -> Case:
    """A square that moves over blocks of colour and is to be removed; length, size and settings are drawn."""
    length, height, width = (int(n) for n in random.integers((1, 60, 60), (13, 130, 130)))
    blocks = random.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
    empty = blocks.repeat(8, 0).repeat(8, 1)[:height, :width]
    frames = np.repeat(empty[None], length, 0)
    for t, frame in enumerate(frames):
        frame[20:40, 2 * t : 2 * t + 20] = 255
    settings = {
        "steps": np.array([random.choice([1, 2, 4])], np.int32),
        "seed": random.integers(2**62, size=1),
        "composite": random.random(1) < 0.5,
    }
    made = model.propagate(frames, empty, **{name: value.item() for name, value in settings.items()})
    return Case({"frames": frames, "edited": empty, **settings}, made.frames, made.mask)


@dataclass
class Tally:
    """What the clients saw; appending to a list is atomic.

    `wrong` holds, for each answer, how many of its frames differ, in their pixels or their mask.
    """

    latencies: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    frames: list[int] = field(default_factory=list)
    wrong: list[int] = field(default_factory=list)


def send(port: int, cases: list[Case], tally: Tally, until: float) -> None:
    """One client: its cases in turn, on one connection, until the time is over."""
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=120)
    turn = 0
    while time.monotonic() < until:
        case, turn = cases[turn % len(cases)], turn + 1
        began = time.monotonic()
        try:
            got = infer(connection, "genprop", case.inputs)
        except (Refused, OSError, http.client.HTTPException) as error:
            tally.errors.append(repr(error))
            connection.close()
            continue
        tally.latencies.append(time.monotonic() - began)
        pixels, mask = got["frames"] != case.frames, got["mask"] != case.mask
        tally.frames.append(len(case.frames))
        tally.wrong.append(int((pixels.any(axis=(1, 2, 3)) | mask.any(axis=(1, 2))).sum()))
    connection.close()


def measure(port: int, pid: int, cases: list[list[Case]], *, seconds: float) -> dict[str, Any]:
    """Let all clients loose for so many seconds, and say how it went."""
    tally, began = Tally(), time.monotonic()
    memory = {"0": megabytes(pid)}
    clients = [
        threading.Thread(target=send, args=(port, own, tally, began + seconds), daemon=True) for own in cases
    ]
    for client in clients:
        client.start()
    while any(client.is_alive() for client in clients):
        time.sleep(0.2)
        if time.monotonic() - began >= 10 * len(memory) and 10 * len(memory) < seconds:
            memory[str(10 * len(memory))] = megabytes(pid)
    took = time.monotonic() - began
    memory["end"] = megabytes(pid)
    p50, p90, p99 = np.percentile(tally.latencies or [np.nan], [50, 90, 99]).round(3).tolist()
    return {
        "clients": len(cases),
        "different_requests": sum(map(len, cases)),
        "seconds": round(took, 1),
        "requests": len(tally.latencies) + len(tally.errors),
        "errors": len(tally.errors),
        "first_error": next(iter(tally.errors), None),
        "frames": sum(tally.frames),
        "wrong_frames": sum(tally.wrong),
        "latency_s": {"p50": p50, "p90": p90, "p99": p99},
        "requests_per_second": round(len(tally.latencies) / took, 2),
        "frames_per_second": round(sum(tally.frames) / took, 1),
        "server_rss_mb": memory,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("repository", type=Path, help="what `genprop export --triton` wrote")
    parser.add_argument("--tritonserver", type=Path, required=True, help="the unpacked wheel nvidia-pytriton")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--cases", type=int, default=3, help="different requests of each client")
    parser.add_argument("--log", type=Path, default=Path("tritonserver.log"), help="of the server")
    given = parser.parse_args()
    model = genprop.load(given.repository / "genprop" / "1" / "export")
    cases = [
        [make_case(model, np.random.default_rng([client, index])) for index in range(given.cases)]
        for client in range(given.clients)
    ]
    began = time.monotonic()
    with running(given.repository, given.tritonserver, log=given.log) as (pid, port):
        ready = time.monotonic() - began
        result = measure(port, pid, cases, seconds=given.seconds)
    print(json.dumps({"seconds_to_ready": round(ready, 1), **result}, indent=1))
    return int(bool(result["errors"] or result["wrong_frames"] or not result["requests"]))


if __name__ == "__main__":
    sys.exit(main())
