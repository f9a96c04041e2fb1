"""The latent adversarial option: a student's x0 has to pass for a true clip in the frozen backbone's eyes.

The mean of what may be in the hole is a good answer to every distance, and soft. What tells it from a clip
is learned here: true latents and the student's x0 are noised again, alike, and the frozen backbone's
encoder looks at both; small heads on its features say which is which. So it is in latent adversarial
diffusion distillation (LADD: Sauer et al. 2024, arXiv:2403.12015), with spatial and temporal heads as in
SF-V, a one-step SVD (Zhang et al. 2024, arXiv:2406.04324, "Spatial Temporal Heads"). Losses are the
hinge's (Lim and Ye 2017, arXiv:1705.02894) with the gradient penalty R1 (Mescheder et al. 2018,
arXiv:1801.04406, eq. 9), without which APT (Lin et al. 2025, arXiv:2501.08316) saw one-step video collapse.
With the encoder frozen it is taken on the features: exact, and no backward pass through a backbone has to be
differentiated.

Legend: b batch, t frames, c channels, h w the grid of a scale. Logits are `[B, T, 1, h, w]`, one map a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from genprop.adaptive import OwnOptimizer
from genprop.distill_settings import AdversarialConfig
from genprop.draws import Draws
from genprop.edm import add_noise, precondition, sample_sigma
from genprop.teacher.objective import Inputs
from genprop.teacher.unet import Backbone, run_block
from genprop.types import Cond


class SpatialHead(nn.Module):
    """Logits of each frame on its own."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        read, say = nn.Conv2d(channels, width, 3, padding=1), nn.Conv2d(width, 1, 1)
        self.layers = nn.Sequential(read, nn.GroupNorm(width // 8, width), nn.SiLU(), say)

    def forward(self, features_btchw: Tensor) -> Tensor:
        return self.layers(features_btchw.flatten(0, 1)).unflatten(0, features_btchw.shape[:2])


class TemporalHead(nn.Module):
    """Logits of each place on its own, along the frames."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        read, say = nn.Conv1d(channels, width, 3, padding=1), nn.Conv1d(width, 1, 1)
        self.layers = nn.Sequential(read, nn.GroupNorm(width // 8, width), nn.SiLU(), say)

    def forward(self, features_btchw: Tensor) -> Tensor:
        b, _, _, h, w = features_btchw.shape
        logits = self.layers(features_btchw.permute(0, 3, 4, 2, 1).flatten(0, 2))
        return logits.unflatten(0, (b, h, w)).permute(0, 4, 3, 1, 2)


class Discriminator(nn.Module):
    """Two heads for each scale of a frozen backbone's encoder; only they are parameters.

    Args:
        backbone: frozen, and not a part of this module: whoever hands it in puts it on the device. Its
            activations are kept for the student's gradient, unless `checkpoint_blocks` is on.
        width: channels of the heads.
    """

    def __init__(self, backbone: Backbone, *, width: int) -> None:
        super().__init__()
        assert not any(p.requires_grad for p in backbone.parameters()), "the discriminator's backbone trains"
        self._frozen = (backbone,)  # in a tuple, where modules and checkpoints do not find it
        widths = backbone.config["block_out_channels"]
        kinds = (SpatialHead, TemporalHead)
        self.heads = nn.ModuleList(kind(c, width) for c in (*widths, widths[-1]) for kind in kinds)

    def features(self, x: Tensor, sigma: Tensor, cond: Cond) -> list[Tensor]:
        """What each head reads of noisy latents `x` `[B, T, C, h, w]`: float32 `[B, T, c, h', w']`.

        Each down block is read where it ends, but before its downsampler, which fine texture does not
        survive; and the middle block.
        """
        (backbone,) = self._frozen
        p = precondition(sigma)
        stem = backbone.stem(
            torch.cat([p.c_in * x, cond.first], dim=2),
            p.c_noise,
            cond.image_embedding,
            cond.added_time_ids[:, :3],
        )
        hidden, found = stem.features_nchw, []
        blocks: Any = backbone.down_blocks  # upstream's, of either kind
        for block in blocks:
            hidden, skips = run_block(block, hidden, stem)
            found.append(skips[-1] if block.downsamplers is None else skips[-2])
        middle: Any = backbone.mid_block
        found.append(
            middle(
                hidden_states=hidden,
                temb=stem.time_embedding_nd,
                encoder_hidden_states=stem.image_embedding_n1d,
                image_only_indicator=stem.image_only_bt,
            )
        )
        scales = [f.float().unflatten(0, x.shape[:2]) for f in found]
        return [scale for scale in scales for _ in range(2)]

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Logits of each head, in float32: a penalty on gradients is not for reduced precision."""
        with torch.autocast(features[0].device.type, enabled=False):
            return [head(f) for head, f in zip(self.heads, features, strict=True)]

    def fixed(self, features: Sequence[Tensor]) -> list[Tensor]:
        """`forward`, whose gradient reaches the features and not the heads."""
        heads = {name: parameter.detach() for name, parameter in self.named_parameters()}
        return functional_call(self, heads, (features,))


class AdversarialTerm(nn.Module):
    """The student's adversarial loss and the heads' own, for one backward pass; see `forward`.

    Args:
        backbone: see `Discriminator`.
    """

    def __init__(self, backbone: Backbone, config: AdversarialConfig) -> None:
        super().__init__()
        self.discriminator = Discriminator(backbone, width=config.width)
        self.config = config

    def own_optimizer(self, *, clip: float) -> OwnOptimizer:
        """What the heads train with: for `Adaptive.own_optimizers`, under this module's prefix."""
        return OwnOptimizer(self.config.learning_rate, self.config.betas, clip)

    def forward(self, x0: Tensor, inputs: Inputs, draws: Draws, *, on: bool) -> dict[str, Tensor]:
        """The losses of a student's `x0`, at whatever sigma it was made; true is `inputs.target`.

        Both get the same noise of the same sigma. The first frame is given: the discriminator is shown the
        true one in any case, and its logits there do not count.

        Args:
            x0: `[B, T, C, h, w]`, T at least 2.
            on: whether the student's loss has a gradient and counts in `loss`; before, it is only measured.

        Returns:
            `loss`, what is to be added to the student's; `adversarial`, its part for the student, without the
            weight; `discriminator`, the heads' hinge loss; `r1`, without its weight; `accuracy_true` and
            `accuracy_made`, the weighted shares of logits with the right sign. Scalars.
        """
        config, true = self.config, inputs.target
        sigma = sample_sigma(draws, mean=config.mean, std=config.std)
        noise = draws.randn(*true.shape[1:])
        made = torch.cat([true[:, :1], x0[:, 1:].float()], dim=1)
        with torch.set_grad_enabled(on and torch.is_grad_enabled()):
            features_made = self.discriminator.features(add_noise(made, noise, sigma), sigma, inputs.cond)
            adversarial = -self._mean(self.discriminator.fixed(features_made), inputs.mask)
        with torch.no_grad():
            features_true = self.discriminator.features(add_noise(true, noise, sigma), sigma, inputs.cond)

        features_true = [f.detach().requires_grad_(config.r1 > 0) for f in features_true]
        logits_true = self.discriminator(features_true)
        logits_made = self.discriminator([f.detach() for f in features_made])
        hinge = self._mean([F.relu(1 - logits) for logits in logits_true], inputs.mask) + self._mean(
            [F.relu(1 + logits) for logits in logits_made], inputs.mask
        )
        penalty = r1(logits_true, features_true) if config.r1 else hinge.new_zeros(())
        loss = hinge + config.r1 * penalty
        return {
            "loss": loss + config.weight * adversarial if on else loss,
            "adversarial": adversarial,
            "discriminator": hinge,
            "r1": penalty,
            "accuracy_true": self._mean([(logits > 0).float() for logits in logits_true], inputs.mask),
            "accuracy_made": self._mean([(logits < 0).float() for logits in logits_made], inputs.mask),
        }

    def _mean(self, maps: Sequence[Tensor], mask_bt1hw: Tensor) -> Tensor:
        """`region_mean` of each head's map, and their mean."""
        return torch.stack([region_mean(m, mask_bt1hw, hole=self.config.hole) for m in maps]).mean()


def region_mean(map_bt1hw: Tensor, mask_bt1hw: Tensor, *, hole: float) -> Tensor:
    """The mean over the frames after the first, where a cell of the hole counts `hole` times.

    The weights are each sample's own, so that two processes with one sample each have the mean of two.

    Args:
        mask_bt1hw: the edit on the latent grid; a coarser cell counts as part of the hole by its share.
    """
    height, width = map_bt1hw.shape[-2:]
    share = F.adaptive_avg_pool2d(mask_bt1hw[:, 1:, 0].float(), (height, width))
    weight = 1 + (hole - 1) * share
    weighted = weight * map_bt1hw[:, 1:, 0]
    return (weighted.sum(dim=(1, 2, 3)) / weight.sum(dim=(1, 2, 3))).mean()


def r1(logits: Sequence[Tensor], features: Sequence[Tensor]) -> Tensor:
    """`|grad D|^2 / 2` on the features of each place after the first frame; the mean over all and over heads.

    D is the sum of a head's logits after the first frame: so the size of the grid does not matter. The
    gradient of this reaches the heads only.

    Args:
        features: one for each of `logits`, which must have been computed from it; leaves of the graph.
    """
    totals = [map_bt1hw[:, 1:].sum() for map_bt1hw in logits]
    gradients = torch.autograd.grad(totals, list(features), create_graph=True)
    return torch.stack([g[:, 1:].square().sum(dim=2).mean() / 2 for g in gradients]).mean()
