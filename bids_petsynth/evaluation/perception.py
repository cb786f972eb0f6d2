"""Fréchet distance of two sets of scans, on the features of a network whose weights the user names.

The distance depends on the network as much as on the scans: none is shipped, and figures of two networks cannot be
compared. Source: Heusel 2017 (Advances in Neural Information Processing Systems 30).
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np

from bids_petsynth.errors import UsageError

#: Networks of MONAI whose weights can be given.
NETWORKS = ("resnet10", "resnet18", "resnet34", "resnet50")


@lru_cache(maxsize=1)
def network(name: str, weights: Path):
    """A three-dimensional residual network of one input channel that gives features, with the user's weights.

    Parameters
    ----------
    name
        One of :data:`NETWORKS`, as MONAI builds it.
    weights
        Safetensors file of its state, without a last layer of classes (one that is there is left out).

    Raises
    ------
    UsageError
        If there is no such network, or the file is none or does not fit it.
    """
    from monai.networks import nets
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if name not in NETWORKS:
        raise UsageError(f"There is no network {name}; choose from {', '.join(NETWORKS)}.")
    try:
        state = load_file(weights)
    except (OSError, SafetensorError):
        raise UsageError(f"{weights} is no readable safetensors file; name the weights of a {name}.") from None
    net = getattr(nets, name)(spatial_dims=3, n_input_channels=1, feed_forward=False)
    kept = {key: value for key, value in state.items() if not key.startswith("fc.")}
    try:
        net.load_state_dict(kept)
    except RuntimeError:
        raise UsageError(f"The weights in {weights} are not those of MONAI's {name} with one input channel.") from None
    return net.eval()


def features(net, volume: np.ndarray, window: tuple[float, float]) -> np.ndarray:
    """``(F,)`` features of a volume ``(X, Y, Z)`` whose window is scaled to 0 to 1."""
    import torch

    scaled = np.clip((volume - window[0]) / (window[1] - window[0]), 0, 1).astype(np.float32)
    with torch.no_grad():
        return net(torch.from_numpy(scaled)[None, None])[0].double().numpy()


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """Fréchet distance of normal distributions with the means and covariances of ``(N, F)`` and ``(M, F)`` (MONAI).

    NaN with fewer than two scans of one side.
    """
    import torch
    from monai.metrics import FIDMetric

    if min(len(a), len(b)) < 2:
        return float("nan")
    return max(float(FIDMetric()(torch.from_numpy(a), torch.from_numpy(b))), 0.0)
