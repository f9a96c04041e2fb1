"""The ablation: every variant of the report and the paper, trained alike and measured alike.

    genprop data encode procedural --base tiny-base --out runs/latents
    python scripts/ablation.py --latents runs/latents --out runs/ablation --steps 600 --batch 4 --jobs 2

Each variant is a list of settings over REFERENCE, the paper's network over the embedded base. It is
trained with the same seed on the same samples for the same number of updates, by the package's own training,
written as a bundle, read again, and sampled on unseen procedural clips that every variant shares, noise
included. One more row is the reference with another seed: differences below that one mean nothing.

A variant's result is `OUT/NAME.json`; those that are there (of the same budget) are not made again, so an
interrupted run goes on. `OUT/table.md` and `OUT/figure.png` are written at the end, and by `--only-report`.
Frames are judged as they come out of the decoder, as in `genprop demo`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

# The paper's network (skips, fusion), at the size of `tiny`. L_grad costs a third of an update, and has its
# own rows.
REFERENCE = ("net.gate=false", "net.carry=0", "loss.gradient=0.0")

# The course report's final design (its gate and conditions have rows of their own).
REPORT = ("sce.injection=blocks", "sce.fusion=none", "sce.norm=true", "loss.downsample=nearest")

VARIANTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "reference": ("reference: skips, fused, alive", ()),
    "report": ("the report: blocks, unfused, GroupNorm, nearest", REPORT),
    "report-dead": ("the report as published: the same, dead", (*REPORT, "sce.zero=both")),
    "seed": ("the same, another seed", ("teacher.seed=1",)),
    "dead": ("injection dead (convolution and norm zeroed)", ("sce.norm=true", "sce.zero=both")),
    "norm": ("injection with GroupNorm", ("sce.norm=true",)),
    "scale": ("injection scaled by 0.5", ("sce.scale=0.5",)),
    "blocks": ("injection at blocks", ("sce.injection=blocks",)),
    "no-fusion": ("no fusion", ("sce.fusion=none",)),
    "one-block": ("one block copied", ("sce.blocks=1",)),
    "blurred": ("original blurred in the true mask (oracle)", ("sce.source=blurred",)),
    "no-mpd": ("no mask decoder's loss", ("loss.mpd=0.0",)),
    "mpd-mse": ("mask decoder by MSE", ("loss.mpd_kind=mse",)),
    "mpd-balance": ("mask decoder, positives weigh 3", ("loss.mpd_balance=3.0",)),
    "nearest": ("masks by nearest", ("loss.downsample=nearest",)),
    "no-mask-weight": ("L_mask weighs 0 beside L_nonmask", ("loss.mask=0.0",)),
    "plain-weight": ("L_mask weighs 1: the plain mean", ("loss.mask=1.0",)),
    "region": ("loss normalised per region", ("loss.normalise=region",)),
    "gradient-last": ("with L_grad on the last features", ("loss.gradient=1.0",)),
    "gradient-all": (
        "with L_grad on all features",
        ("loss.gradient=1.0", "loss.gradient_features=all"),
    ),
    "temporal": ("with temporal consistency", ("loss.temporal=1.0",)),
    "gate": ("with the mask-aware gate", ("net.gate=true",)),
    "carry": ("with gate and carry", ("net.gate=true", "net.carry=56")),
    "ctrl-adapter": ("Ctrl-Adapter: frozen features", ("sce.kind=ctrl-adapter",)),
    "conv-adapter": ("convolutional adapter at the stem", ("sce.kind=conv-adapter",)),
    "unet3d": ("3D U-Net, no frozen backbone", ("sce.kind=unet3d",)),
}
"""What a row is called, and its settings over `REFERENCE`."""

CLIPS_SEED = 40_000
"""Of the clips that are measured; trainings and demos draw theirs from other seeds."""

SAMPLING_STEPS = 10


def run_variant(name: str, *, latents: Path, out: Path, steps: int, batch: int, clips: int) -> dict[str, Any]:
    """Train one variant, or go on with it, and measure what its bundle does."""
    import torch

    from genprop.bundle import locate
    from genprop.config import load_config
    from genprop.evaluate.protocol import hardware
    from genprop.student.clone import load_model
    from genprop.teacher.train import train

    torch.set_num_threads(1)
    torch.manual_seed(1 if "teacher.seed=1" in VARIANTS[name][1] else 0)  # of the layers that start at random
    budget = (f"teacher.steps={steps}", f"teacher.batch_size={batch}", f"teacher.validate_every={steps}")
    settings = (*budget, "teacher.checkpoint_every=200", "teacher.keep_checkpoints=1")
    config = load_config("tiny", (*REFERENCE, *settings, *VARIANTS[name][1]))
    run = out / name
    train("teacher", config, data=[str(latents)], base=locate("tiny-base"), out=run, resume=True)
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    rates = sorted(line["steps_per_second"] for line in lines if "steps_per_second" in line)
    bundle, net, base = load_model(run / "teacher")
    return {
        "name": name,
        "settings": list(VARIANTS[name][1]),
        "steps": steps,
        "batch": batch,
        "clips": clips,
        "seconds_per_update": 1 / rates[len(rates) // 2],
        "trained": sum(tensor.numel() for tensor in bundle.tensors().values()),
        **measure(net, base, config, clips=clips),
        "curve": [[line[key] for key in ("step", "hole", "keep")] for line in lines if "hole" in line],
        "hardware": hardware().model_dump(),
    }


def unseen(config: Any, clips: int) -> list[Any]:
    """The clips that every variant is measured on."""
    from genprop.data.procedural import ProceduralClips

    size = config.clip
    dataset = ProceduralClips(clips, CLIPS_SEED, frames=size.frames, height=size.height, width=size.width)
    return [dataset[i] for i in range(clips)]


def measure(net: Any, base: Any, config: Any, *, clips: int, batch: int = 4) -> dict[str, float]:
    """The teacher's sampling (Euler, guided as the preset) of unseen clips against their truth."""
    import torch
    from torch.utils.data import default_collate

    from genprop.data.latents import PixelSamples, encode_sample
    from genprop.draws import Draws
    from genprop.edm import Guided, NetDenoiser, karras_sigmas
    from genprop.evaluate.measure import pixels_of
    from genprop.metrics import MaskIoU, RegionPsnr, Sharpness
    from genprop.runtime.composite import upsample_mask
    from genprop.sampling import euler
    from genprop.settings import LossConfig
    from genprop.teacher.losses import latent_mask, region_terms
    from genprop.teacher.objective import TeacherObjective

    sampling, size = config.sampling, config.clip
    objective = TeacherObjective(net, base.image_encoder, config)
    denoiser = Guided(NetDenoiser(net), sampling.guidance_min, sampling.guidance_max)
    sigmas = karras_sigmas(SAMPLING_STEPS, sigma_min=sampling.sigma_min, sigma_max=sampling.sigma_max)
    samples = unseen(config, clips)
    raw = PixelSamples(samples)  # type: ignore[arg-type]
    pixels = [{**raw[i], "seed": torch.tensor(CLIPS_SEED + i)} for i in range(clips)]
    quality, iou, sharpness = RegionPsnr(), MaskIoU(), Sharpness()
    errors, masks, ratios = [], [], []
    with torch.no_grad():
        for start in range(0, clips, batch):
            part = samples[start : start + batch]
            encoded = [
                encode_sample(pixels[i], base.autoencoder, base.image_encoder, size)
                for i in range(start, start + len(part))
            ]
            collated = default_collate(encoded)
            inputs = objective.inputs(collated, None)
            noise = Draws.of(CLIPS_SEED + start, len(part)).randn(*inputs.target.shape[1:])
            x0, logits = euler(denoiser, noise, sigmas, inputs.cond)
            errors.append((x0 - inputs.target)[:, 1:])
            grid = (inputs.target.shape[-2], inputs.target.shape[-1])
            # the same masks for all, whatever they were taught with
            masks.append(latent_mask(collated["mask"], grid, kind="gaussian")[:, 1:])
            ratios.append(
                float(objective(collated, Draws.of(CLIPS_SEED + start, len(part)))["injection_ratio"])
            )
            for i, sample in enumerate(part):
                frames = pixels_of(base.autoencoder.decode(x0[i : i + 1]))
                quality.add(frames, sample.target, sample.mask)
                sharpness.add(frames, sample.target, sample.mask)
                predicted = upsample_mask(logits[i : i + 1], height=size.height, width=size.width)
                iou.add(predicted > 0.5, sample.mask)
    terms = region_terms(torch.cat(errors), torch.cat(masks), LossConfig())
    return {
        "hole_mse": float(terms["hole"]),
        "keep_mse": float(terms["keep"]),
        "hole_psnr": quality.hole,
        "keep_psnr": quality.keep,
        "sharpness": sharpness.value,
        "mask_iou": iou.value,
        "injection_ratio": sum(ratios) / len(ratios),
    }


def run_references(clips: int) -> dict[str, Any]:
    """What there is without a model, and the truth through the autoencoder."""
    import torch

    from genprop.bundle import locate
    from genprop.config import load_config
    from genprop.evaluate.baselines import frozen_first_frame, identity
    from genprop.evaluate.measure import measure_frames, pixels_of
    from genprop.pixels import to_pixels
    from genprop.teacher.base import load_base

    torch.set_num_threads(1)
    samples = unseen(load_config("tiny"), clips)
    autoencoder = load_base(locate("tiny-base")).autoencoder

    @torch.no_grad()
    def through(sample: Any) -> Any:
        truth = to_pixels(torch.from_numpy(sample.target))[None]
        return pixels_of(autoencoder.decode(autoencoder.encode_scaled(truth)))

    makers = {
        "truth through the autoencoder": through,
        "identity (the original)": identity,
        "frozen first frame": frozen_first_frame,
    }
    return {"clips": clips, "rows": {n: measure_frames(m, samples).model_dump() for n, m in makers.items()}}


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, path)


def is_done(path: Path, budget: dict[str, int]) -> bool:
    """Whether a result of this budget is there."""
    if not path.is_file():
        return False
    found = json.loads(path.read_text(encoding="utf-8"))
    return all(found[key] == value for key, value in budget.items())


def run_all(names: Sequence[str], out: Path, *, jobs: int, arguments: Sequence[str]) -> list[str]:
    """Each variant in a process of its own, `jobs` at a time; the names of those that failed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}

    def run_one(name: str) -> bool:
        began = time.perf_counter()
        with (out / f"{name}.log").open("w") as log:
            command = [sys.executable, __file__, *arguments, "--one", name]
            code = subprocess.run(command, env=environment, stdout=log, stderr=log, check=False).returncode
        said = f"{time.perf_counter() - began:.0f} s" if code == 0 else f"failed, see {out / name}.log"
        print(f"{name}: {said}", file=sys.stderr, flush=True)
        return code == 0

    with ThreadPoolExecutor(jobs) as pool:
        ended = list(pool.map(run_one, names))
    return [name for name, fine in zip(names, ended, strict=True) if not fine]


def results(out: Path) -> list[dict[str, Any]]:
    """Those that are there, in the order of `VARIANTS`."""
    files = [out / f"{name}.json" for name in VARIANTS]
    return [json.loads(file.read_text(encoding="utf-8")) for file in files if file.is_file()]


def table(rows: Sequence[dict[str, Any]], references: dict[str, Any]) -> str:
    """Markdown: one row a variant, after what there is without a model."""
    names = "hole dB | keep dB | hole MSE | keep MSE | sharpness | mask IoU | injection ratio"
    text = [f"| | settings | {names} | s/update | trained |", "|---" * 11 + "|"]
    for title, figures in references["rows"].items():
        hole, keep = ("-" if figures[k] is None else f"{figures[k]:.2f}" for k in ("hole_psnr", "keep_psnr"))
        text.append(f"| {title} | | {hole} | {keep} |" + " |" * 7)
    for row in rows:
        masked = "loss.mpd=0.0" not in row["settings"]
        cells = [
            VARIANTS[row["name"]][0],
            "<br>".join(f"`{setting}`" for setting in row["settings"]),
            *(f"{row[key]:.2f}" for key in ("hole_psnr", "keep_psnr")),
            *(f"{row[key]:.3f}" for key in ("hole_mse", "keep_mse")),
            f"{row['sharpness']:.2f}",
            f"{row['mask_iou']:.2f}" if masked else "-",
            f"{row['injection_ratio']:.2f}",
            f"{row['seconds_per_update']:.2f}",
            f"{row['trained'] / 1e6:.2f} M",
        ]
        text.append(f"| {' | '.join(cells)} |")
    return "\n".join(text) + "\n"


def figure(rows: Sequence[dict[str, Any]], references: dict[str, Any], file: Path) -> None:
    """PSNR of hole and kept region of each variant; the band is as wide as another seed is away."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    found = {row["name"]: row for row in rows}
    titles = [VARIANTS[row["name"]][0] for row in rows]
    places = range(len(rows))
    image, axes = pyplot.subplots(
        1, 2, figsize=(11, 0.3 * len(rows) + 1.6), sharey=True, layout="constrained"
    )
    for axis, key, region in zip(axes, ("hole_psnr", "keep_psnr"), ("hole", "kept region"), strict=True):
        values = [row[key] for row in rows]
        axis.plot(values, places, "o", color="black", zorder=3)
        if {"reference", "seed"} <= found.keys():
            middle = found["reference"][key]
            apart = abs(found["seed"][key] - middle)
            axis.axvspan(
                middle - apart, middle + apart, color="tab:blue", alpha=0.2, label="reference, +- a seed"
            )
        styles = ("-", ":", "--")
        for (title, figures), style in zip(references["rows"].items(), styles, strict=False):
            if figures[key] is not None:
                axis.axvline(figures[key], color="tab:red", linestyle=style, linewidth=1, label=title)
        axis.set_xlabel(f"PSNR of the {region}, dB")
        axis.grid(axis="y", alpha=0.3)
    axes[0].set_yticks(places, titles)
    axes[0].invert_yaxis()
    image.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
    image.savefig(file, dpi=150)
    pyplot.close(image)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--latents", type=Path, required=True, help="encoded samples, over tiny-base")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=600, help="updates of each variant")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--clips", type=int, default=24, help="unseen clips that are measured")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="NAME")
    parser.add_argument("--jobs", type=int, default=1, help="variants at a time, one thread each")
    parser.add_argument("--only-report", action="store_true", help="table and figure of the results there")
    parser.add_argument("--one", choices=VARIANTS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    out, budget = given.out, {"steps": given.steps, "batch": given.batch, "clips": given.clips}
    if given.one:
        result = run_variant(given.one, latents=given.latents, out=out, **budget)
        write_json(out / f"{given.one}.json", result)
        return
    out.mkdir(parents=True, exist_ok=True)
    failed = []
    if not given.only_report:
        left = [name for name in given.only if not is_done(out / f"{name}.json", budget)]
        arguments = [
            f"--{key}={value}" for key, value in {**budget, "latents": given.latents, "out": out}.items()
        ]
        failed = run_all(left, out, jobs=given.jobs, arguments=arguments)
    references = out / "references.json"
    if not is_done(references, {"clips": given.clips}):
        write_json(references, run_references(given.clips))
    known = json.loads(references.read_text(encoding="utf-8"))
    rows = results(out)
    (out / "table.md").write_text(table(rows, known), encoding="utf-8")
    if rows:
        figure(rows, known, out / "figure.png")
    print(
        f"{len(rows)} of {len(VARIANTS)} variants: {out / 'table.md'}, {out / 'figure.png'}", file=sys.stderr
    )
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
