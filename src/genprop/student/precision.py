"""A model in reduced precision: the weights of all of its parts, but for what overflows."""

from __future__ import annotations

from typing import Any

from genprop.manifest import DTYPES, Precision, of_encoder
from genprop.teacher.base import Base
from genprop.teacher.net import GenPropNet


def convert(net: GenPropNet, base: Base, precision: Precision) -> None:
    """Bring weights to a precision, in place; the autoencoder's encoder to its own (`of_encoder`)."""
    dtype = DTYPES[precision]
    net.to(dtype)
    base.image_encoder.clip.to(dtype)  # type: ignore[call-arg]
    vae: Any = base.autoencoder.vae  # upstream's, whose parts are not typed
    for part in (vae.encoder, vae.quant_conv):
        if part is not None:
            part.to(DTYPES[of_encoder(precision)])
    for part in (vae.decoder, getattr(vae, "post_quant_conv", None)):  # a temporal one has none
        if part is not None:
            part.to(dtype)
