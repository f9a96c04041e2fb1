"""The only source of I/O names and shapes: every graph, described before it is exported.

The batch is 1, the number of frames a constant, and all that goes in and out is float32. The autoencoder has
windows of a few frames (`chunks`); the size of a frame may vary, if an export is asked for it.
"""

from __future__ import annotations

from genprop.bundle import Bundle
from genprop.manifest import (
    CONDITIONER,
    DECODER,
    DENOISER,
    ENCODER,
    IMAGE_ENCODER,
    LIGHT_DECODER,
    GraphSpec,
    Precision,
    Shape,
    TensorSpec,
    of_encoder,
)
from genprop.teacher.base import Base
from genprop.teacher.net import GenPropNet
from genprop.teacher.sce import skips_of


def encode_frames(frames: int, chunk: int) -> int:
    """Frames of the encoder's window: the clip and the edited first frame with the fewest encoded twice.

    Of 2 to `chunk`, the largest of those: 9 frames go in threes, 26 in twos. The encoder sees each frame
    alone, and one is work enough for any GPU.
    """
    total = frames + 1
    return min(range(min(2, chunk), chunk + 1), key=lambda size: (-total % size, -size))


def graph_specs(
    bundle: Bundle,
    net: GenPropNet,
    base: Base,
    *,
    precision: Precision = "fp32",
    dynamic: bool = False,
) -> dict[str, GraphSpec]:
    """The graphs of a model, by name.

    Args:
        precision: of all but the encoder, which overflows in float16 and stays in float32 there.
        dynamic: whether the size of a frame varies.
    """
    clip, vae, backbone = bundle.card.config.clip, base.autoencoder, net.backbone
    channels, down = backbone.config["out_channels"], vae.downsampling
    cells = (clip.height // down, clip.width // down)
    size: Shape = ("height", "width") if dynamic else (clip.height, clip.width)
    grid: Shape = ("grid_height", "grid_width") if dynamic else cells
    latents: Shape = (1, clip.frames, channels, *grid)
    window = min(vae.chunk, clip.frames)
    encoded = encode_frames(clip.frames, vae.chunk)
    embedding = TensorSpec(
        name="image_embedding", shape=(1, 1, int(base.image_encoder.clip.config.projection_dim))
    )
    first = TensorSpec(name="first", shape=latents)
    source = TensorSpec(name="source", shape=latents)
    ids = TensorSpec(name="added_time_ids", shape=(1, bundle.card.config.net.columns))
    prepared = conditioning(net, latents)
    specs = [
        GraphSpec(
            name=DENOISER,
            inputs=(
                TensorSpec(name="sample", shape=latents),
                TensorSpec(name="timestep", shape=(1,)),
                first,
                *((source,) if not net.once or net.gate is not None else ()),
                embedding,
                ids,
                *prepared,
            ),
            outputs=(
                TensorSpec(name="velocity", shape=latents),
                TensorSpec(name="mask_logits", shape=(1, clip.frames, 1, *grid)),
            ),
            precision=precision,
        ),
        GraphSpec(
            name=ENCODER,
            inputs=(TensorSpec(name="frames", shape=(1, encoded, 3, *size)),),
            outputs=(TensorSpec(name="unscaled_latents", shape=(1, encoded, channels, *grid)),),
            precision=of_encoder(precision),
        ),
        GraphSpec(
            name=DECODER,
            inputs=(TensorSpec(name="latents", shape=(1, window, channels, *grid)),),
            outputs=(TensorSpec(name="frames", shape=(1, window, 3, *size)),),
            precision=precision,
        ),
        GraphSpec(
            name=IMAGE_ENCODER,
            # Of one size: its preprocessing blurs by a kernel as large as the frame asks for.
            inputs=(TensorSpec(name="frame", shape=(1, 3, clip.height, clip.width)),),
            outputs=(embedding,),
            precision=precision,
        ),
    ]
    if bundle.decoder is not None:
        full = specs[2]
        assert full.name == DECODER
        specs.append(full.model_copy(update={"name": LIGHT_DECODER}))
    if prepared:
        given = (first, source, *((embedding, ids) if net.once else ()))
        specs.append(GraphSpec(name=CONDITIONER, inputs=given, outputs=prepared, precision=precision))
    return {spec.name: spec for spec in specs}


def conditioning(net: GenPropNet, latents: Shape) -> tuple[TensorSpec, ...]:
    """What a network prepares once for a clip (`GenPropNet.prepare`), flat and in its order."""
    _, frames, _, *grid = latents
    tensors = []
    if net.carry is not None:
        tensors.append(TensorSpec(name="carried", shape=latents))
        tensors += [TensorSpec(name=name, shape=(1, frames, 1, *grid)) for name in ("trust", "handover")]
    if net.once:
        for i, (width, halvings) in enumerate(residual_places(net)):
            halved = [-(-n // 2**halvings) if isinstance(n, int) else f"{n}/{2**halvings}" for n in grid]
            tensors.append(TensorSpec(name=f"residual_{i}", shape=(frames, width, *halved)))
    return tuple(tensors)


def residual_places(net: GenPropNet) -> list[tuple[int, int]]:
    """Channels and halvings of each residual of the content encoder."""
    count, blocks = len(net.sce.injections), len(net.backbone.down_blocks)
    if net.sce.injection != "blocks":
        return skips_of(net.backbone, blocks)[:count]
    return [skips_of(net.backbone, n + 1)[-1] for n in range(count)]  # a block ends in its last skip
