"""The networks that read a head: one finds it anywhere, one labels it on the model grid, one sharpens the labels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bids_petsynth.folding import fold, unfold

#: The grid of the labelling network: the model grid of the built-in model.
LABEL_SHAPE = (96, 112, 96)
LABEL_SPACING = 2.0
#: Voxel size at which the locating network works, mm.
LOCATE_SPACING = 4.0
#: Times that the refining network goes over the labels.
LOOKS = 2


def _block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(inputs, outputs, 3, stride, 1, bias=False),
        nn.InstanceNorm3d(outputs, affine=True),
        nn.LeakyReLU(0.01, inplace=True),
    )


class UNet(nn.Module):
    """U-Net from a T1w to class logits, all of it at half the resolution or less.

    The image enters with each cube of eight voxels folded into channels and the logits of a cube's eight voxels leave
    together: on a CPU that costs a third of convolutions at full resolution, at the same sharpness.

    Parameters
    ----------
    classes
        Number of classes, background included.
    channels
        Width of each level; the first has half the image's resolution, each further one half of the one before.
    shape
        Where given, the grid on which every head stands in the same pose: the network is then told where each voxel
        lies (coordinates as input channels, a learned map at the last two levels), which spares it finding the head.

    Notes
    -----
    Input ``(N, 1, X, Y, Z)`` in RAS order, divided by its 99th percentile; every extent must be a
    multiple of ``2 ** len(channels)``. Output ``(N, classes, X, Y, Z)``.
    """

    def __init__(self, classes: int, channels: Sequence[int], shape: tuple[int, int, int] | None = None):
        super().__init__()
        self.channels = tuple(channels)
        first = channels[0]
        self.stem = nn.Sequential(_block(8 if shape is None else 12, first), _block(first, first))
        pairs = list(zip(channels[:-1], channels[1:], strict=True))
        self.down = nn.ModuleList(nn.Sequential(_block(a, b, 2), _block(b, b)) for a, b in pairs)
        self.up = nn.ModuleList(nn.ConvTranspose3d(b, a, 2, 2) for a, b in pairs[::-1])
        self.merge = nn.ModuleList(_block(2 * a, a) for a, _ in pairs[::-1])
        self.last = _block(first, first)
        self.head = nn.Conv3d(first, 8 * classes, 1)
        self.places = nn.ParameterList()
        if shape is not None:
            for level in (len(channels) - 2, len(channels) - 1):
                self.places.append(torch.zeros(1, channels[level], *(n // 2 ** (level + 1) for n in shape)))
            axes = torch.meshgrid(*(torch.linspace(-1, 1, n // 2) for n in shape), indexing="ij")
            self.register_buffer("coordinates", torch.stack([*axes, axes[0].abs()])[None], persistent=False)

    @property
    def multiple(self) -> int:
        """Every spatial extent must be divisible by this."""
        return 2 ** len(self.channels)

    def folded(self, image: Tensor, start: Sequence[int] = (0, 0, 0)) -> Tensor:
        """Logits with each cube's voxels folded as by :func:`bids_petsynth.folding.fold`.

        ``start`` is the image's first voxel on the grid, where the network has one: a multiple of :attr:`multiple`.
        """
        out = fold(image, 2)
        if len(self.places):
            here = _window(self.coordinates, out.shape[2:], start, 2)
            out = torch.cat([out, here.expand(len(out), -1, -1, -1, -1)], 1)
        skips = [self.stem(out)]
        for level, down in enumerate(self.down, 1):
            out = down(skips[-1])
            place = level - len(self.down) + 1
            if len(self.places) and place >= 0:
                out = out + _window(self.places[place], out.shape[2:], start, 2 ** (level + 1))
            skips.append(out)
        out = skips.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            out = merge(torch.cat([up(out), skips.pop()], dim=1))
        return self.head(self.last(out))

    def forward(self, image: Tensor, start: Sequence[int] = (0, 0, 0)) -> Tensor:
        return unfold(self.folded(image, start), 2)


class Refiner(nn.Module):
    """Moves the borders in the logits of :class:`UNet` to where the image has them, at the image's full resolution.

    A U-Net that starts from folded voxels sees a border only through its channels; a few plain convolutions that are
    given both its answer and the image put it where the image has it. They look :data:`LOOKS` times, the second time at
    what they have made of the answer.

    Parameters
    ----------
    classes
        Number of classes, background included.
    width
        Channels of the three convolutions before the last.

    Notes
    -----
    Input ``(N, 1, X, Y, Z)``, the T1w in the usual contrast, and logits ``(N, classes, X, Y, Z)``; output logits of the
    same shape. Untrained it leaves them as they are.
    """

    def __init__(self, classes: int, width: int):
        super().__init__()
        layers: list[nn.Module] = []
        for inputs in (1 + classes, width, width):
            layers += [nn.Conv3d(inputs, width, 3, 1, 1), nn.LeakyReLU(0.01, inplace=True)]
        self.layers = nn.Sequential(*layers)
        self.head = nn.Conv3d(width, classes, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, image: Tensor, logits: Tensor) -> Tensor:
        for _ in range(LOOKS):
            logits = logits + self.head(self.layers(torch.cat([image, logits.softmax(1)], 1)))
        return logits


def _window(field: Tensor, shape: Sequence[int], start: Sequence[int], factor: int) -> Tensor:
    """The part of a map at ``1 / factor`` of the resolution that belongs to a window of the grid."""
    cut = (slice(s // factor, s // factor + n) for s, n in zip(start, shape, strict=True))
    return field[(slice(None), slice(None), *cut)]


def locating_net(classes: int) -> UNet:
    """Finds and roughly labels a head in any pose, at :data:`LOCATE_SPACING`."""
    return UNet(classes, (32, 48, 64))


def labelling_net(classes: int) -> UNet:
    """Labels a head on the model grid (:data:`LABEL_SHAPE`, :data:`LABEL_SPACING`)."""
    return UNet(classes, (64, 96, 128, 128), LABEL_SHAPE)


def refining_net(classes: int) -> Refiner:
    """Sharpens the labels on the model grid."""
    return Refiner(classes, 32).to(memory_format=torch.channels_last_3d)  # a CPU takes two thirds of the time
