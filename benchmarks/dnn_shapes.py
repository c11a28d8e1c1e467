"""The convolutions and matrix products that DNN libraries are compared by.

Source of the convolutions: He, Zhang, Ren, Sun, "Deep residual learning for image recognition", 2015, table 1, the
network of 50 layers on images of 224 x 224, with the stride in the 3 x 3 convolution of a block as in torchvision's
`resnet50` (its "v1.5"). Each shape is listed once, however often the network has it.
"""

from __future__ import annotations

from typing import Final, NamedTuple

__all__ = ["BATCHES", "CONVOLUTIONS", "MATMULS", "Convolution", "Matmul"]


class Convolution(NamedTuple):
    """Images of (channels, size, size) to filters of (kernel, kernel), without bias."""

    channels: int
    size: int
    filters: int
    kernel: int
    stride: int = 1

    @property
    def padding(self) -> int:
        """What keeps the size at stride 1."""
        return self.kernel // 2

    @property
    def result_size(self) -> int:
        """Height and width of the result."""
        return (self.size + 2 * self.padding - self.kernel) // self.stride + 1

    @property
    def name(self) -> str:
        """For example ``64x56-k3-64``; a stride other than 1 follows as ``-s2``."""
        stride = f"-s{self.stride}" if self.stride > 1 else ""
        return f"{self.channels}x{self.size}-k{self.kernel}-{self.filters}{stride}"


class Matmul(NamedTuple):
    """(rows, inner) times (inner, columns); the second one is the weight."""

    rows: int
    inner: int
    columns: int

    @property
    def name(self) -> str:
        """For example ``512x512x512``."""
        return f"{self.rows}x{self.inner}x{self.columns}"


def _stage(size: int, channels: int, width: int, stride: int) -> list[Convolution]:
    """The distinct convolutions of a stage of bottleneck blocks."""
    inside, result = size // stride, 4 * width
    found = [
        Convolution(channels, size, width, 1),
        Convolution(width, size, width, 3, stride),
        Convolution(width, inside, result, 1),
        Convolution(channels, size, result, 1, stride),
        Convolution(result, inside, width, 1),
        Convolution(width, inside, width, 3),
    ]
    return list(dict.fromkeys(found))


BATCHES: Final = (1, 32)
CONVOLUTIONS: Final = (
    Convolution(3, 224, 64, 7, 2),
    *_stage(56, 64, 64, 1),
    *_stage(56, 256, 128, 2),
    *_stage(28, 512, 256, 2),
    *_stage(14, 1024, 512, 2),
)
"""ResNet-50's distinct shapes: 23."""

MATMULS: Final = (
    Matmul(1, 2048, 1000),  # ResNet-50's classifier, batch 1
    Matmul(32, 2048, 1000),  # and 32
    Matmul(128, 768, 768),  # BERT base, 128 tokens: attention's projections
    Matmul(128, 768, 3072),  # and both layers of its feed-forward network
    Matmul(128, 3072, 768),
    Matmul(512, 512, 512),
    Matmul(1024, 1024, 1024),
)
"""Matrix products with a weight. Source of the middle ones: Devlin, Chang, Lee, Toutanova, "BERT", 2018, base model."""
