"""The tracker ready to run: its network's weights, and one frame of a video after the other."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from genprop.errors import GenPropError
from genprop.guide.network import Memory, TrackerNet
from genprop.guide.tracking import State, advance, inputs, probability_of


def to_unit(crops: np.ndarray) -> Tensor:
    """uint8 `[B, S, S, C]` to float `[B, C, S, S]` in [0, 1], as the network reads it."""
    return torch.from_numpy(crops).movedim(-1, 1).float() / 255


def embedded_tracker() -> Path:
    """The weights that come with the package."""
    return Path(str(files("genprop") / "assets" / "tracker.safetensors"))


def load_tracker(path: Path) -> TrackerNet:
    """A network with the weights of a file.

    Raises:
        GenPropError: no such file, or weights of something else.
    """
    net = TrackerNet()
    try:
        net.load_state_dict({name: x.float() for name, x in load_file(path).items()})
    except (OSError, SafetensorError, RuntimeError) as error:
        raise GenPropError(
            f"{path} holds no weights of the tracker: {error}",
            "Train one with genprop train --stage tracker.",
        ) from error
    return net.eval()


def save_tracker(net: TrackerNet, path: Path) -> None:
    """Weights in float16, in which nothing is lost that a mask would show."""
    save_file({name: x.detach().half().contiguous() for name, x in net.state_dict().items()}, path)


class Tracker:
    """Follows an object from frame to frame.

    Args:
        state: the first frame's, from `tracking.begin`.
    """

    def __init__(self, net: TrackerNet, state: State) -> None:
        self._net, self.state = net, state
        self._memory: tuple[tuple[np.ndarray, np.ndarray], Memory] | None = None

    def step(self, frame: np.ndarray, flow: np.ndarray, *, mask: np.ndarray | None = None) -> float:
        """Go on to the next frame; `state` is then its.

        Args:
            frame: uint8 `[h, w, 3]`.
            flow: from it to the last one, float32 `[h, w, 2]`.
            mask: the object, bool `[h, w]`, where it is known.

        Returns:
            The confidence in its mask, 0 to 1; 1 where it was given.
        """
        given = inputs(self.state, frame, flow)
        if mask is not None:
            self.state = advance(self.state, frame, given, mask.astype(np.float32), 1.0)
            return 1.0
        with torch.inference_mode():
            logits, sure = self._net(to_unit(given.crop[None]), *self._recall())
        confidence = float(sure.sigmoid())
        probability = probability_of(logits[0, 0].numpy(), given.region, self.state.mask.shape)
        self.state = advance(self.state, frame, given, probability, confidence)
        return confidence

    def _recall(self) -> Memory:
        """The memory's crops as the network reads them; anew only when they have changed."""
        crops = self.state.remembered
        if self._memory is None or self._memory[0] is not crops:
            keys, values = self._net.remember(to_unit(np.stack(crops)))
            self._memory = crops, Memory(keys.flatten(0, 1)[None], values.flatten(0, 1)[None])
        return self._memory[1]
