"""The only source of I/O names and shapes: four graphs, each described before it is exported.

The batch is 1 and all is float32. The denoiser has the clip's own number of frames; the autoencoder
takes any number, because it is run on a few frames at a time, and encodes the single edited frame too.
"""

from __future__ import annotations

from genprop.manifest import FRAMES, GraphSpec, TensorSpec
from genprop.settings import ClipConfig

DENOISER = "denoiser"
ENCODER = "autoencoder_encoder"
DECODER = "autoencoder_decoder"
IMAGE_ENCODER = "image_encoder"


def graph_specs(
    clip: ClipConfig,
    *,
    latent_channels: int,
    embedding_width: int,
    downsampling: int,
    columns: int = 3,
) -> dict[str, GraphSpec]:
    """The graphs of a model, by name.

    Args:
        clip: how many frames of which size.
        latent_channels: C of the latents.
        embedding_width: D of the image embedding.
        downsampling: pixels a latent cell is wide.
        columns: of `added_time_ids` (`net.columns`).
    """
    size = (clip.height, clip.width)
    grid = (clip.height // downsampling, clip.width // downsampling)
    latents = (1, clip.frames, latent_channels, *grid)
    embedding = TensorSpec(name="image_embedding", shape=(1, 1, embedding_width))
    specs = (
        GraphSpec(
            name=DENOISER,
            inputs=(
                TensorSpec(name="sample", shape=latents),
                TensorSpec(name="timestep", shape=(1,)),
                TensorSpec(name="first", shape=latents),
                TensorSpec(name="source", shape=latents),
                embedding,
                TensorSpec(name="added_time_ids", shape=(1, columns)),
            ),
            outputs=(
                TensorSpec(name="velocity", shape=latents),
                TensorSpec(name="mask_logits", shape=(1, clip.frames, 1, *grid)),
            ),
        ),
        GraphSpec(
            name=ENCODER,
            inputs=(TensorSpec(name="frames", shape=(1, FRAMES, 3, *size)),),
            outputs=(TensorSpec(name="unscaled_latents", shape=(1, FRAMES, latent_channels, *grid)),),
        ),
        GraphSpec(
            name=DECODER,
            inputs=(TensorSpec(name="latents", shape=(1, FRAMES, latent_channels, *grid)),),
            outputs=(TensorSpec(name="frames", shape=(1, FRAMES, 3, *size)),),
        ),
        GraphSpec(
            name=IMAGE_ENCODER,
            inputs=(TensorSpec(name="frame", shape=(1, 3, *size)),),
            outputs=(embedding,),
        ),
    )
    return {spec.name: spec for spec in specs}
