"""One update of a full-size distillation, random weights: seconds, peak memory, and the share of each part.

    python benchmarks/distill_step.py --frames 14 --height 320 --width 576 --precision bf16 --out step.json

The teacher makes its k steps in the update (`distill.precompute` off), the student answers and learns (LoRA,
content encoder, mask decoder), and the base's image encoder scores decoded frames. Parts are timed by calls,
with the device waited for on both ends: teacher, student (forward), reward (decoding apart), decoding, and
the rest, which is the backward pass and the optimiser.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genprop.config import Config, load_config
from genprop.data.latents import Batch
from genprop.distill.objective import ConsistencyObjective
from genprop.distill.rewards.terms import open_rewards
from genprop.draws import Draws
from genprop.edm import Guided, NetDenoiser
from genprop.student.clone import clone
from genprop.teacher.base import new_base
from genprop.teacher.net import GenPropNet
from genprop.teacher.outline import empty_batch
from genprop.teacher.unet import checkpoint_blocks


class Clock:
    """Seconds by part; a part inside another does not count twice."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds, self.inside = device, {}, []

    def timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            began = self.now()
            self.inside.append(0.0)
            try:
                return call(*arguments, **options)
            finally:
                took, within = self.now() - began, self.inside.pop()
                self.seconds[name] = self.seconds.get(name, 0.0) + took - within
                if self.inside:
                    self.inside[-1] += took

        return run

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


class TimedStudent(GenPropNet):
    """A student whose forward pass is timed; made of a `GenPropNet` by changing its class."""

    clock: Clock

    def parts(self, *inputs: Tensor) -> Any:  # type: ignore[override]
        return self.clock.timed("student", super().parts)(*inputs)


def measure(config: Config, *, device: torch.device, updates: int) -> dict[str, Any]:
    """The median update of `updates`, after one that is not counted."""
    base = new_base(config.base, seed=0)
    for module in base:
        module.requires_grad_(False).eval().to(device)
    net = GenPropNet(base.backbone, config.net, config.sce).requires_grad_(False).to(device)
    student = clone(net, adapter=config.distill.adapter)
    if config.student.checkpointing:
        checkpoint_blocks(student)
    clock = Clock(device)
    student.__class__ = TimedStudent
    student.clock = clock  # type: ignore[assignment]
    rewards = open_rewards(
        config.distill.rewards,
        base.autoencoder,
        base.image_encoder,
        base_name=config.name,
        frames=config.clip.frames,
    )
    decode = clock.timed("decode", base.autoencoder.decode_window)
    base.autoencoder.decode_window = decode  # type: ignore[method-assign]
    s = config.sampling
    teacher = clock.timed("teacher", Guided(NetDenoiser(net), s.guidance_min, s.guidance_max).__call__)
    objective = ConsistencyObjective(
        student,
        base.image_encoder,
        config,
        teacher=teacher,
        rewards=clock.timed("reward", rewards) if rewards else None,  # type: ignore[arg-type]
    ).to(device)
    trained = [p for p in objective.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5)
    batch: Batch = {k: v.to(device) for k, v in empty_batch(config, base, config.student.batch_size).items()}
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(config.student.precision)
    rows: list[dict[str, float]] = []
    for update in range(updates + 1):
        clock.seconds.clear()
        began = clock.now()
        draws = Draws.of(update, config.student.batch_size, device=device)
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            loss = objective(batch, draws)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        rows.append({**clock.seconds, "update": clock.now() - began})
    parts = {name: statistics.median(row.get(name, 0.0) for row in rows[1:]) for name in rows[-1]}
    rest = parts["update"] - sum(value for name, value in parts.items() if name != "update")
    shares = {n: v / parts["update"] for n, v in {**parts, "backward": rest}.items() if n != "update"}
    peak = (
        torch.cuda.max_memory_allocated(device)
        if device.type == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor(),
        "torch": torch.__version__,
        "clip": [config.clip.frames, config.clip.height, config.clip.width],
        "precision": config.student.precision,
        "trained": sum(p.numel() for p in trained),
        "seconds": parts["update"],
        "peak_bytes": peak,
        "share": shares,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="One update of a distillation, random weights.")
    parser.add_argument("--config", default="svd-xt")
    parser.add_argument("--frames", type=int)
    parser.add_argument("--height", type=int)
    parser.add_argument("--width", type=int)
    parser.add_argument("--precision", default="bf16", choices=["no", "bf16", "fp16"])
    parser.add_argument("--updates", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    size = {name: getattr(arguments, name) for name in ("frames", "height", "width")}
    config = load_config(
        arguments.config,
        [
            "distill.precompute=false",
            "distill.trajectory=0",
            "distill.teacher_steps=1",
            "distill.rewards.encoder.weight=1",
            f"student.precision={arguments.precision}",
            *(f"clip.{name}={value}" for name, value in size.items() if value),
            *arguments.overrides,
        ],
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = measure(config, device=device, updates=arguments.updates)
    print(json.dumps(found, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
