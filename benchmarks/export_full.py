"""What it takes to export a student of random weights at full size and to build its engines, with no GPU.

    python benchmarks/export_full.py WORK [--preset svd-xt] [--to tensorrt-rtx] [-- genprop export's options]

Runs the command line's own `genprop export` on a student that `scripts/random_student.py` makes in WORK,
twice: the second time everything is there already. Memory is that of all its processes together, shared pages
counted once, sampled ten times a second. Prints one JSON document.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from genprop.export.folder import versions
from genprop.hardware import describe_hardware

GENPROP = "from genprop.cli import main; main()"


def tree_memory(root: psutil.Process) -> int:
    """Bytes of a process and its children, a page that several share counted once (PSS)."""
    total = 0
    for process in (root, *root.children(recursive=True)):
        try:
            total += process.memory_full_info().pss
        except psutil.Error:  # it has just ended
            continue
    return total


def run(command: list[str]) -> dict[str, Any]:
    """A command's seconds, its peak memory and the JSON document it prints."""
    began, peak = time.perf_counter(), 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            try:
                peak = max(peak, tree_memory(watched))
            except psutil.Error:
                break
            time.sleep(0.1)
        assert process.stdout is not None
        text = process.stdout.read()
    if process.returncode:
        raise SystemExit(process.returncode)
    seconds = time.perf_counter() - began
    return {"seconds": round(seconds, 1), "peak_bytes": peak, "document": json.loads(text)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path)
    parser.add_argument("--preset", default="svd-xt")
    parser.add_argument("--to", default="tensorrt-rtx")
    parser.add_argument("options", nargs="*", help="passed on, after --")
    arguments = parser.parse_args()
    student = arguments.work / "student"
    if not student.is_dir():
        script = Path(__file__).parents[1] / "scripts" / "random_student.py"
        subprocess.run(
            [sys.executable, str(script), arguments.preset, str(arguments.work)], check=True, stdout=2
        )
    out = arguments.work / "export"
    options = ["--no-verify", *arguments.options]
    export = [sys.executable, "-c", GENPROP, "export", str(student), "--to", arguments.to, "--json", *options]
    places = ["--out", str(out), "--cache", str(arguments.work / "cache")]
    first, again = run([*export, *places]), run([*export, *places])
    manifest = first.pop("document")
    clip = manifest["config"]["clip"]
    print(
        json.dumps(
            {
                "what": f"a random {arguments.preset} student, exported and built",
                "options": ["--to", arguments.to, *options],
                "clip": {side: clip[side] for side in ("frames", "height", "width")},
                "precision": manifest["precision"],
                "first": first,
                "again": {"seconds": again["seconds"], "peak_bytes": again["peak_bytes"]},
                "engines": [
                    {k: v for k, v in engine.items() if k not in ("fingerprint", "key")}
                    for engine in manifest["engines"].values()
                ],
                "files": {file.name: file.stat().st_size for file in sorted(out.iterdir())},
                "versions": versions(),
                "hardware": describe_hardware(),
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
