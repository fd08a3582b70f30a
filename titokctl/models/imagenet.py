"""Input normalisation of torchvision's classifiers: ImageNet's mean and deviation.

Letters: B batch, H and W height and width.
"""

import torch

MEAN = (0.485, 0.456, 0.406)
DEVIATION = (0.229, 0.224, 0.225)


def normalized(images: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Images (B, 3, H, W) in [0, 1] as (image - mean) / deviation of each channel, in `dtype`, channels last.

    Computed in float32, with constants that no module.to(bfloat16) rounds.
    """
    channels = zip(images.float().unbind(1), MEAN, DEVIATION, strict=True)
    x = torch.stack([(channel - mean) / deviation for channel, mean, deviation in channels], 1)
    return x.to(dtype).contiguous(memory_format=torch.channels_last)
