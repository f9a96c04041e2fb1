"""Each graph as a module that takes and gives float32, whatever its precision inside.

A module is converted in place: an export owns the model that it has loaded.
"""

from __future__ import annotations

from torch import Tensor, nn

from genprop.latents import Autoencoder
from genprop.manifest import (
    CONDITIONER,
    DECODER,
    DENOISER,
    DTYPES,
    ENCODER,
    IMAGE_ENCODER,
    LIGHT_DECODER,
    GraphSpec,
)
from genprop.student.light_decoder import LightDecoder
from genprop.student.one_token import simplify
from genprop.student.precision import convert
from genprop.teacher.base import Base
from genprop.teacher.carry import Carried
from genprop.teacher.net import GenPropNet, Prepared
from genprop.teacher.sce import SceOut


class Denoiser(nn.Module):
    """The network, given what it prepares once for a clip, if there is any of it."""

    def __init__(self, net: GenPropNet, spec: GraphSpec) -> None:
        super().__init__()
        self.net = net
        self.names = [tensor.name for tensor in spec.inputs]

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        given = dict(zip(self.names, inputs, strict=True))
        sample, timestep, first = (given.pop(name) for name in ("sample", "timestep", "first"))
        source = given.pop("source", first)  # that of a network which reads it only once is not read here
        embedding, ids = given.pop("image_embedding"), given.pop("added_time_ids")
        prepared = unflatten(self.net, tuple(given.values())) if given else None
        out = self.net.parts(sample, timestep, first, source, embedding, ids, prepared=prepared).out
        return out.velocity.float(), out.mask_logits.float()


class Conditioner(nn.Module):
    """`GenPropNet.prepare`: what the network makes of a clip, once for all steps."""

    def __init__(self, net: GenPropNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        first, source, *rest = inputs
        embedding, ids = rest or (first.new_zeros(1, 1, 1), first.new_zeros(1, 1))
        prepared = self.net.prepare(first, source, embedding, ids)
        return tuple(tensor.float() for tensor in flatten(prepared))


def flatten(prepared: Prepared) -> tuple[Tensor, ...]:
    """Its tensors, in the order of `spec.conditioning`."""
    residuals = prepared.sce.residuals_nchw if prepared.sce is not None else ()
    return (*(prepared.carried or ()), *residuals)


def unflatten(net: GenPropNet, tensors: tuple[Tensor, ...]) -> Prepared:
    """The inverse of `flatten`."""
    carried = None
    if net.carry is not None:
        carried, tensors = Carried(*tensors[:3]), tensors[3:]
    residuals = tuple(tensor.to(net.dtype) for tensor in tensors)
    return Prepared(carried, SceOut(residuals, residuals) if net.once else None)


class Encoder(nn.Module):
    """Frames `[1, t, 3, H, W]` in [-1, 1] to the unscaled mode of their posterior `[1, t, C, h, w]`."""

    def __init__(self, autoencoder: Autoencoder, spec: GraphSpec) -> None:
        super().__init__()
        self.autoencoder = Autoencoder(autoencoder.vae, chunk=int(spec.inputs[0].shape[1]))
        self.dtype = DTYPES[spec.precision]

    def forward(self, frames: Tensor) -> Tensor:
        return self.autoencoder.encode(frames.to(self.dtype)).float()


class Decoder(nn.Module):
    """Scaled latents `[1, t, C, h, w]` to frames `[1, t, 3, H, W]`, as one window."""

    def __init__(self, decoder: Autoencoder | LightDecoder, spec: GraphSpec) -> None:
        super().__init__()
        self.decoder, self.dtype = decoder, DTYPES[spec.precision]

    def forward(self, latents: Tensor) -> Tensor:
        unscaled = latents / self.decoder.scaling_factor
        return self.decoder.decode_window(unscaled.to(self.dtype)).float()


class Embedder(nn.Module):
    """A frame `[1, 3, H, W]` in [-1, 1] to its embedding `[1, 1, D]`; preprocessed in float32."""

    def __init__(self, base: Base) -> None:
        super().__init__()
        self.image_encoder = base.image_encoder

    def forward(self, frame: Tensor) -> Tensor:
        return self.image_encoder(frame).float()


def stage_modules(
    net: GenPropNet, base: Base, specs: dict[str, GraphSpec], *, light: LightDecoder | None = None
) -> dict[str, nn.Module]:
    """The module of each graph, by the graph's name, ready for capture; what is given is converted."""
    simplify(net)
    convert(net, base, specs[DENOISER].precision)
    modules: dict[str, nn.Module] = {
        DENOISER: Denoiser(net, specs[DENOISER]),
        ENCODER: Encoder(base.autoencoder, specs[ENCODER]),
        DECODER: Decoder(base.autoencoder, specs[DECODER]),
        IMAGE_ENCODER: Embedder(base),
    }
    if light is not None:
        light.to(DTYPES[specs[LIGHT_DECODER].precision])
        modules[LIGHT_DECODER] = Decoder(light, specs[LIGHT_DECODER])
    if CONDITIONER in specs:
        modules[CONDITIONER] = Conditioner(net)
    return {name: module.requires_grad_(False).eval() for name, module in modules.items()}
