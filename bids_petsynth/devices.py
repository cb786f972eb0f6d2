"""What a device computes fast; all networks ask it."""

from __future__ import annotations

from collections.abc import Collection

import torch


def fast_autocast(device: str, trained: Collection[int] = ()) -> torch.autocast:
    """Autocast to bfloat16 where the device computes in it (about twice as fast), else none.

    ``trained`` are the extents along the first axis of what 3D convolutions are trained on. Where one of them is 2, a
    CPU's bfloat16 gradient of the weights is wrong and changes from call to call (oneDNN in torch 2.13), so there is no
    autocast.
    """
    if device.startswith("cuda"):
        # emulated it is slower than float32
        enabled = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        enabled = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)() and 2 not in trained
    return torch.autocast(device.split(":")[0], torch.bfloat16, enabled=bool(enabled))
