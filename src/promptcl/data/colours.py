"""Other colours for a view, as contrastive learning takes them (SimCLR, arXiv 2002.05709; SupCon; Co2L).

B images, C channels, S pixels a side, N images of the whole batch.
"""

from __future__ import annotations

import torch
from torch import Tensor


def recoloured(
    views_BCSS: Tensor, generator: torch.Generator, rows: slice = slice(None), total: int | None = None
) -> Tensor:
    """Change the colours of each view in [0, 1] in its own way, which `generator` alone decides.

    With probability 0.8 brightness, contrast and saturation are multiplied by 0.6 to 1.4 and the hue is turned by up to
    a tenth of a circle, in random order; then, with probability 0.2, the view is grey; then, with probability 0.5, it
    is blurred with a sigma of 0.1 to 2 pixels, unless it is 32 pixels or smaller.
    rows, total: as of `augment.train_view`.
    """
    from torchvision.transforms.v2 import functional as F  # slow to import, and needed by few

    changes = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
    draws = torch.rand((total or len(views_BCSS), 12), generator=generator)[rows].tolist()
    side, done = views_BCSS.shape[-1], []
    kernel = side // 20 * 2 + 1
    for view_CSS, (changed, grey, blurred, sigma, *at) in zip(views_BCSS, draws, strict=True):
        amounts = [*(0.6 + 0.8 * u for u in at[:3]), 0.2 * at[3] - 0.1]
        if changed < 0.8:
            for i in sorted(range(4), key=at[4:].__getitem__):
                view_CSS = changes[i](view_CSS, amounts[i])
        if grey < 0.2:
            view_CSS = F.rgb_to_grayscale(view_CSS, num_output_channels=3)
        if blurred < 0.5 and side > 32:
            view_CSS = F.gaussian_blur(view_CSS, [kernel, kernel], [0.1 + 1.9 * sigma] * 2)
        done.append(view_CSS)
    return torch.stack(done) if done else views_BCSS
