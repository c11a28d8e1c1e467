"""The demo's network in PyTorch, whose autograd finds the gradient; for contexts with ``arrays="torch"``.

The functions stand in for those of `tazza.demo.network` and take the same arguments; parameters, images and results are
the same to rounding.
"""

from __future__ import annotations

from typing import Any

from tazza.demo.network import unpack
from tazza.dnn import Array, Dnn

__all__ = ["gradient", "library", "predict"]


def library() -> tuple[str, str]:
    """Return the name and the version of PyTorch."""
    import torch

    return "torch", str(torch.__version__)


def predict(xp: Any, dnn: Dnn, parameters: Array, images: Array) -> Array:
    """Return the logits (N, 10) of images (N, 1, 8, 8); PyTorch needs neither namespace nor library."""
    import torch

    with torch.no_grad():
        return _logits(unpack(xp, parameters), images)


def gradient(xp: Any, dnn: Dnn, parameters: Array, images: Array, labels: Array) -> Array:
    """Return, as one array, the gradient of the summed cross entropy, that sum, and the number of right answers."""
    import torch

    leaf = parameters.detach().requires_grad_()
    logits = _logits(unpack(xp, leaf), images)
    loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
    (slopes,) = torch.autograd.grad(loss, leaf)
    right = (logits.detach().argmax(1) == labels).sum()
    return torch.cat([slopes, loss.detach().reshape(1), right.reshape(1).to(slopes.dtype)])


def _logits(layers: list[Array], images: Array) -> Array:
    from torch.nn import functional

    w1, b1, w2, b2, w3, b3 = layers
    first = functional.relu(functional.conv2d(images, w1, b1, padding=1))
    second = functional.relu(functional.conv2d(first, w2, b2, padding=1))
    return functional.linear(functional.max_pool2d(second, 2).flatten(1), w3, b3)
