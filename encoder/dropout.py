"""Dropout that is cheap on a CPU, where PyTorch draws one random double per element, one after the other."""

import torch
from torch import nn


def fast_dropout(x: torch.Tensor, probability: float) -> torch.Tensor:
    """Zero each element with a probability and scale up the rest; any shape and floating type.

    On a CPU four elements share one random 64-bit integer of PyTorch's generator, 16 bits each, so the probability is
    rounded to a multiple of 1 / 65536, and the scale with it. Elsewhere it is PyTorch's own.
    """
    threshold = round(probability * 65536)
    if x.device.type != "cpu" or threshold == 65536:
        return nn.functional.dropout(x, probability)
    bits = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    kept = (bits[: x.numel()] >= threshold - 32768).view(x.shape)
    return x * kept.to(x.dtype).mul_(65536 / (65536 - threshold))


class FastDropout(nn.Dropout):
    """As `nn.Dropout`, by the function above."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return fast_dropout(x, self.p) if self.training and self.p > 0 else x


def replace_dropout(module: nn.Module) -> None:
    """Put the class above in the place of every `nn.Dropout` within a module."""
    for child in module.modules():
        if type(child) is nn.Dropout:
            child.__class__ = FastDropout
