"""A bundle as four ONNX graphs and a manifest.

The graphs are captured by `torch.export`. Nine tenths of the time is capture and decomposition; of the
exporter's optimiser only the constant folding is kept: its pattern rewriter takes as long as both, and
ONNX Runtime fuses the same patterns itself, so the graphs run at the same speed without.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from genprop.export.manifest import check_output, file_hashes, versions, weight_hashes, whole_folder
from genprop.export.spec import DECODER, DENOISER, ENCODER, IMAGE_ENCODER, graph_specs
from genprop.export.verify import EXAMPLE_SEED, check_parity, draw_inputs, measure_parity, sigmas_to_verify
from genprop.latents import Autoencoder
from genprop.manifest import FILE, FRAMES, GraphSpec, Manifest
from genprop.student.clone import load_model
from genprop.teacher.base import Base
from genprop.teacher.net import GenPropNet

MAX_FRAMES = 1024
"""More frames than the autoencoder is ever given at a time."""


class Encoder(nn.Module):
    """Frames `[1, t, 3, H, W]` in [-1, 1] to the unscaled mode of their posterior `[1, t, C, h, w]`.

    As one chunk: cutting frames into chunks would fix their number, so that is left to the caller.
    """

    def __init__(self, autoencoder: Autoencoder) -> None:
        super().__init__()
        self.autoencoder = Autoencoder(autoencoder.vae, chunk=MAX_FRAMES)

    def forward(self, frames: Tensor) -> Tensor:
        return self.autoencoder.encode(frames)


class Decoder(nn.Module):
    """Scaled latents `[1, t, C, h, w]` to frames `[1, t, 3, H, W]`, as one window."""

    def __init__(self, autoencoder: Autoencoder) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, latents: Tensor) -> Tensor:
        return self.autoencoder.decode_window(latents / self.autoencoder.scaling_factor)


def stage_modules(net: GenPropNet, base: Base) -> dict[str, nn.Module]:
    """The module of each graph, by the graph's name, ready for capture."""
    modules = {
        DENOISER: net,
        ENCODER: Encoder(base.autoencoder),
        DECODER: Decoder(base.autoencoder),
        IMAGE_ENCODER: base.image_encoder,
    }
    return {name: module.requires_grad_(False).eval() for name, module in modules.items()}


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what the exporter says about itself, which no user can act on, off the terminal."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)  # "torchvision is not installed"
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
            yield
    finally:
        logger.setLevel(level)


def export_graph(module: nn.Module, spec: GraphSpec, file: Path, *, opset: int) -> None:
    """Write one graph. Weights above 2 GB go into a file beside it, as protobuf demands."""
    from onnxscript import optimizer

    axis = torch.export.Dim(FRAMES, min=1, max=MAX_FRAMES)
    shapes = tuple({t.shape.index(FRAMES): axis} for t in spec.inputs) if spec.dynamic else None
    with quiet(), torch.no_grad():
        program = torch.onnx.export(
            module,
            draw_inputs(spec, EXAMPLE_SEED, frames=3),  # torch.export would take 0 or 1 for a constant
            dynamo=True,
            opset_version=opset,
            input_names=[tensor.name for tensor in spec.inputs],
            output_names=[tensor.name for tensor in spec.outputs],
            dynamic_shapes=shapes,
            optimize=False,
            verbose=False,
        )
    assert program is not None
    optimizer.fold_constants(program.model)
    optimizer.remove_unused_nodes(program.model)
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # stack traces: half of a small file, and the paths of this machine
    program.save(str(file))


def export_onnx(bundle: str | Path, out: Path, *, opset: int = 20, verify: bool = True) -> Manifest:
    """Export a bundle into the folder `out`, whole or not at all; an older export there is replaced.

    Args:
        bundle: a name that `bundle.locate` knows, or a folder. A LoRA is merged.
        opset: of the graphs; 20 is the first whose Gelu is an operator.
        verify: measure parity with PyTorch, on inputs other than the example inputs, and insist on it.

    Raises:
        GenPropError: a broken bundle, an output that is in use or unwritable, parity missed.
    """
    check_output(out)
    model, net, base = load_model(bundle)
    config, vae = model.card.config, base.autoencoder
    latent_channels = int(vae.vae.config["latent_channels"])
    specs = graph_specs(
        config.clip,
        latent_channels=latent_channels,
        embedding_width=int(base.image_encoder.clip.config.projection_dim),
        downsampling=vae.downsampling,
        columns=config.net.columns,
    )
    modules = stage_modules(net, base)
    chunk = min(vae.chunk, config.clip.frames)
    with whole_folder(out) as folder:
        for name, spec in specs.items():
            export_graph(modules[name], spec, folder / spec.file, opset=opset)
        parity = ()
        if verify:
            sigmas = sigmas_to_verify(model.card.sigmas, config.sampling)
            parity = measure_parity(folder, modules, specs, sigmas=sigmas, chunk=chunk)
        manifest = Manifest(
            kind=model.card.kind,
            config=config,
            sigmas=model.card.sigmas,
            eta=model.card.eta,
            scaling_factor=vae.scaling_factor,
            latent_channels=latent_channels,
            chunk=chunk,
            opset=opset,
            graphs=specs,
            files=file_hashes(folder),
            weights=weight_hashes(model),
            versions=versions(),
            parity=parity,
            worst=check_parity(parity) if parity else None,
        )
        (folder / FILE).write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return manifest
