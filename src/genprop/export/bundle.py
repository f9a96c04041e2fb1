"""A bundle as a folder of verified graphs and engines: what `genprop export` calls.

    load -> simplify (optimise for ONNX Runtime) -> graph by graph -> gates -> engines -> manifest.json

The folder appears whole or not at all. Graphs that are there already, of the same weights and made in the
same way, are kept, and so are engines (`engines`): `explain_export` says what would be made anew, and why.
"""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from genprop.bundle import Bundle, read_bundle
from genprop.errors import GenPropError
from genprop.export.folder import check_output, file_hashes, link, versions, weight_hashes
from genprop.export.modules import stage_modules
from genprop.export.onnx import export_graph
from genprop.export.optimise import optimise
from genprop.export.options import ExportOptions
from genprop.export.spec import graph_specs
from genprop.export.verify import run_gates
from genprop.folders import whole_folder
from genprop.manifest import DECODER, DENOISER, DTYPES, ENCODER, FILE, Manifest, is_export, read_manifest
from genprop.student.clone import load_model
from genprop.student.light_decoder import load_light_decoder

Say = Callable[[str], None]


def export_bundle(
    bundle: str | Path,
    out: Path,
    options: ExportOptions | None = None,
    *,
    cache: Path | None = None,
    say: Say = lambda _: None,
) -> Manifest:
    """Export a bundle into the folder `out`, whole or not at all; an older export there is replaced.

    Args:
        bundle: a name that `bundle.locate` knows, or a folder. A LoRA is merged.
        cache: folder of the engine cache, instead of the user's.
        say: told what is being done.

    Raises:
        GenPropError: a broken bundle, an output that is in use or unwritable, a gate missed, an engine that
            cannot be built.
    """
    options = options or ExportOptions()
    check_output(out)
    model = read_bundle(bundle)
    before = kept(out, recipe(model, options))
    if before is not None and options.to == "onnx" and (before.verified or not options.verify):
        say(f"{out}: there already, of these weights")
        return before
    with whole_folder(out) as folder:
        if before is None:
            manifest = write_graphs(bundle, folder, options, say)
            if options.quantise is not None:
                manifest = quantised(bundle, folder, manifest, options.quantise, say)
            gc.collect()  # the model is gone before the gates load theirs, and before an engine is built
        else:
            say(f"{out}: the graphs are of these weights, and are kept")
            for spec in before.graphs.values():
                for file in spec.files(before.files):
                    link(out / file, folder / file)
            manifest = before.model_copy(update={"engines": {}, "files": file_hashes(folder)})
        if options.verify and not manifest.verified:
            say("measuring against PyTorch in float32")
            manifest = manifest.model_copy(update={"checks": run_gates(bundle, folder, manifest)})
        if options.to != "onnx":
            from genprop.export.engines import build_engines

            engines = build_engines(
                folder,
                manifest,
                backend=options.to,
                targets=options.compute_capabilities,
                level=options.level,
                workspace=options.workspace,
                timing_cache=options.timing_cache,
                cache=cache,
                say=say,
            )
            manifest = manifest.model_copy(update={"engines": engines, "files": file_hashes(folder)})
        (folder / FILE).write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return manifest


def write_graphs(bundle: str | Path, folder: Path, options: ExportOptions, say: Say) -> Manifest:
    """Load, simplify, and write a graph for each stage into `folder`; the manifest without checks."""
    model, net, base = load_model(bundle, dtype=DTYPES[options.inside])
    config, autoencoder = model.card.config, base.autoencoder
    autoencoder.chunk = options.chunk or autoencoder.chunk
    autoencoder.overlap = autoencoder.overlap if options.overlap is None else options.overlap
    levels = len(net.backbone.config["block_out_channels"]) - 1
    size, step = (config.clip.height, config.clip.width), 2**levels
    sizes = options.sizes(size, multiple=autoencoder.downsampling * step, cells=step)
    if sizes is not None and net.carry is not None:
        raise GenPropError(
            "the network has a carry, which has one size: expected no range of sizes",
            "leave --min-size and --max-size out",
        )
    specs = graph_specs(model, net, base, precision=options.inside, dynamic=sizes is not None)
    channels, factor = int(net.backbone.config["out_channels"]), autoencoder.scaling_factor
    light = load_light_decoder(model, autoencoder) if model.decoder is not None else None
    modules = stage_modules(net, base, specs, light=light)
    for name, spec in specs.items():
        say(f"{name}: exporting in {spec.precision}")
        # Quantising finds layers where the model has them; what is rewritten is made for one size.
        if options.to == "onnx" and options.quantise is None and sizes is None:
            optimise(modules[name])
        export_graph(
            modules.pop(name), spec, folder / spec.file, opset=options.graph_opset, sizes=sizes, example=size
        )
    return Manifest(
        kind=model.card.kind,
        config=config,
        sigmas=model.card.sigmas,
        eta=model.card.eta,
        scaling_factor=factor,
        latent_channels=channels,
        precision=options.inside,
        encode_frames=int(specs[ENCODER].inputs[0].shape[1]),
        chunk=int(specs[DECODER].inputs[0].shape[1]),
        overlap=autoencoder.overlap,
        sizes=sizes,
        opset=options.graph_opset,
        graphs=specs,
        files=file_hashes(folder),
        weights=weight_hashes(model),
        versions=versions(),
        recipe=recipe(model, options),
    )


def quantised(
    bundle: str | Path, folder: Path, manifest: Manifest, kind: Literal["fp8", "int8"], say: Say
) -> Manifest:
    """Quantise the denoiser's graph in `folder`; the manifest that says so."""
    from genprop.export.quantise import quantise_bundle

    spec = manifest.graphs[DENOISER]
    say(f"{spec.name}: calibrating for {kind}")
    report = quantise_bundle(bundle, spec, folder / spec.file, kind=kind)
    say(
        f"{spec.name}: {len(report.quantized)} layers in {kind}, {100 * report.share:.0f} % of the work; "
        f"relative L2 error {report.l2:.3f}; {report.bytes_before / 1e6:.1f} MB are now "
        f"{report.bytes_after / 1e6:.1f}"
    )
    graphs = {**manifest.graphs, DENOISER: spec.model_copy(update={"quantized": kind})}
    made = {"graphs": graphs, "files": file_hashes(folder), "quantisation": report.model_dump()}
    return manifest.model_copy(update=made)


def recipe(model: Bundle, options: ExportOptions) -> dict[str, str]:
    """Everything that graphs and their checks depend on, by name: equal recipes make equal graphs."""
    asked = options.model_dump(include={"to", "quantise", "min_size", "max_size", "chunk", "overlap"})
    card = model.card.model_dump(mode="json", include={"kind", "config", "sigmas", "eta"})
    return {
        "weights": _digest(weight_hashes(model)),
        "configuration": _digest(card),
        "precision": options.inside,
        "opset": str(options.graph_opset),
        **{name: str(value) for name, value in asked.items()},
        **versions(),
    }


def kept(out: Path, wanted: dict[str, str]) -> Manifest | None:
    """The export in `out`, if its graphs are those that would be made, and whole."""
    if not is_export(out):
        return None
    try:
        found = read_manifest(out)
    except GenPropError:  # damaged, or of an older format
        return None
    return found if found.recipe == wanted else None


def explain_export(
    bundle: str | Path, out: Path, options: ExportOptions, *, cache: Path | None = None
) -> list[str]:
    """What `export_bundle` would make anew, and why, a line each. Nothing is loaded or built."""
    wanted = recipe(read_bundle(bundle), options)
    if not is_export(out):
        return [f"graphs: would be exported, for {out} holds no export"]
    try:
        found = read_manifest(out)
    except GenPropError as error:
        return [f"graphs: would be exported, for {error.message}"]
    changed = [name for name in wanted if found.recipe.get(name) != wanted[name]]
    if changed:
        named = ", ".join(f"{n} ({found.recipe.get(n, 'none')} -> {wanted[n]})" for n in changed)
        lines = [f"graphs: would be exported again, for they differ in {named}"]
        return lines + ([] if options.to == "onnx" else ["engines: follow from the graphs' contents"])
    lines = ["graphs: kept, of the same weights and made in the same way"]
    if options.to != "onnx":
        from genprop.export.engines import explain_engines

        lines += explain_engines(
            out,
            found,
            backend=options.to,
            targets=options.compute_capabilities,
            level=options.level,
            workspace=options.workspace,
            cache=cache,
        )
    return lines


def _digest(table: object) -> str:
    return hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()[:16]
