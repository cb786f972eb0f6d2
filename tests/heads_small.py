"""Phantom heads on a tiny grid, as prepared arrays, for tests of training on simulated people."""

from __future__ import annotations

import numpy as np
from models_small import small_recipe
from scipy.ndimage import gaussian_filter

from bids_petsynth.training.pairs import Heads

SHAPE = (32, 48, 32)
CLASSES = 48


def recipe_here():
    return small_recipe(grid={"shape": list(SHAPE)}, tracers=["AV45", "FDG"])


def phantom_heads(n: int = 3) -> Heads:
    """Concentric shells of a few regions, around a ventricle, a cerebellum and a brainstem below."""
    x, y, z = np.meshgrid(*(np.arange(s) - (s - 1) / 2 for s in SHAPE), indexing="ij")
    radius = np.sqrt(x**2 + (y / 1.4) ** 2 + (z - 2) ** 2)
    classes = np.zeros(SHAPE, np.uint8)
    classes[radius < 14] = 50
    classes[radius < 12] = 47
    classes[radius < 11] = np.where(y > 0, 1, 18)[radius < 11]
    classes[radius < 8] = 34
    classes[radius < 3] = 40
    low = radius < 11
    classes[low & (z < -5)] = 43
    classes[low & (z < -5) & (abs(x) < 3)] = 46
    classes[low & (abs(z + 5) < 1) & (abs(x) < 2) & (abs(y) < 2)] = 42
    contrast = np.zeros(60, np.float32)
    contrast[[50, 47, 1, 18, 34, 40, 43, 46, 42]] = [0.8, 0.2, 0.6, 0.65, 1.0, 0.2, 0.6, 0.95, 0.2]
    t1w = gaussian_filter(contrast[classes], 0.5).astype(np.float16)
    brain = np.where(classes < CLASSES, classes, 0)
    shares = np.stack([(brain == k).reshape(16, 2, 24, 2, 16, 2).mean((1, 3, 5)) for k in range(CLASSES)])
    names = tuple(["IXI001", "IXI002", "IXI353"][:n])
    stack = [np.stack([a] * n) for a in (t1w, classes, brain.astype(np.uint8), (shares * 255).round().astype(np.uint8))]
    return Heads(*stack, names)


def save(heads: Heads, path):
    np.savez(path, **{name: np.asarray(value) for name, value in vars(heads).items()})
    return path
