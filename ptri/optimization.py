"""Learning rate, averaged weights and precision of training."""

from __future__ import annotations

import math

import torch
from torch import nn

from ptri.errors import UserError


def learning_rate_factor(step: int, total: int, warmup: int, final: float) -> float:
    """Linear warm-up (at most half of the run), then a cosine from 1 down to ``final``."""
    warmup = min(warmup, total // 2)
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))


@torch.no_grad()
def update_ema(ema: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """Moves the averaged weights and BatchNorm statistics towards the model's; copies the rest.

    During the first steps the average is shorter: the decay is at most (1 + step) / (10 + step).
    """
    weight = 1 - min(decay, (1 + step) / (10 + step))
    averaged, current = list(ema.parameters()), list(model.parameters())
    for (name, old), new in zip(ema.named_buffers(), model.buffers()):
        if name.endswith(("running_mean", "running_var")):
            averaged.append(old)
            current.append(new)
        else:
            old.copy_(new)
    torch._foreach_lerp_(averaged, current, weight)


def amp_type(choice: str, device: torch.device) -> torch.dtype | None:
    """The reduced precision of ``train.amp`` on a device, None for float32.

    Raises:
        UserError: fp16 without a GPU.
    """
    on_gpu = device.type == "cuda"
    if choice == "auto" and not on_gpu:
        # Without instructions of its own bf16 is emulated: 20 times slower than float32.
        return torch.bfloat16 if fast_bf16() else None
    if choice == "fp16" and not on_gpu:
        raise UserError("train.amp: fp16 needs a GPU; use auto, off or bf16")
    if choice == "off":
        return None
    if choice == "auto":
        choice = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return torch.bfloat16 if choice == "bf16" else torch.float16


def fast_bf16() -> bool:
    """Whether this CPU multiplies bf16 matrices itself (avx512_bf16 or amx)."""
    cpu = torch.backends.cpu.get_cpu_capability()  # what torch uses: ATEN_CPU_CAPABILITY lowers it
    tests = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # private, hence getattr
    return cpu.startswith("AVX512") and any(
        getattr(torch.cpu, name, lambda: False)() for name in tests
    )
