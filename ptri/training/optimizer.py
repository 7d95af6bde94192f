"""Optimizer, learning rate, averaged weights and precision of training."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ptri.config import TrainConfig
from ptri.errors import UserError

FINAL_LR = 0.01  # share of the learning rate at the end of a run
WEIGHT_DECAY = 0.01  # of matrices and kernels in every step, times the learning rate
MUON_SIDE = 16  # matrices with a shorter side, such as depthwise kernels (C, 1, 3, 3), take AdamW
MUON_MOMENTUM = 0.95
MUON_RMS = 0.2  # of an update over the learning rate, about AdamW's, so that both take the same
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # of a quintic that sends (0, 1] to about 1
NEWTON_SCHULZ_STEPS = 5
SMALLEST_NORM = 1e-7  # guards the division where a gradient is zero


class Muon(torch.optim.AdamW):
    """AdamW, but for groups with ``"matrices": True`` momentum made orthogonal.

    Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks", with the scale of
    Liu et al. 2025, "Muon is scalable for LLM training", section 2.2. A kernel (out, in, h, w)
    counts as a matrix (out, in h w). Weights without a gradient stay as they are.

    torch.optim.Muon takes no kernels; timm.optim.Muon trains as well, but multiplies in bf16, which
    takes a CPU that emulates it twenty times longer (docs/decisions.md).
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One step; the gradients are left as they are."""
        done: list[tuple[Tensor, Tensor]] = []
        for group in self.param_groups:
            for weight in group["params"] if group.get("matrices") else ():
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:  # AdamW wants a step to load a state
                    state |= {"step": torch.tensor(0.0), "momentum": torch.zeros_like(weight)}
                momentum = state["momentum"].lerp_(weight.grad, 1 - MUON_MOMENTUM)
                update = weight.grad.lerp(momentum, MUON_MOMENTUM).flatten(1)  # Nesterov's
                scale = MUON_RMS * math.sqrt(max(update.shape))
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(orthogonal(update).view_as(weight), alpha=-group["lr"] * scale)
                done.append((weight, weight.grad))
                weight.grad = None  # AdamW passes over it
        super().step(closure)
        for weight, gradient in done:
            weight.grad = gradient


def orthogonal(matrix: Tensor) -> Tensor:
    """About U V^T of a matrix (m, n) = U S V^T, by Newton-Schulz iterations; singular values of the
    result lie between 0.7 and 1.2 (where S is not tiny)."""
    a, b, c = NEWTON_SCHULZ
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.mT if tall else matrix
    x = x / (x.norm() + SMALLEST_NORM)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


def decaying_groups(weights: list[nn.Parameter], **options: Any) -> list[dict[str, Any]]:
    """Groups for an optimizer: matrices and kernels decay, biases and norms do not."""
    return [
        {"params": [p for p in weights if p.ndim >= 2], **options},
        {"params": [p for p in weights if p.ndim < 2], "weight_decay": 0.0, **options},
    ]


def make_optimizer(groups: list[dict[str, Any]], train: TrainConfig) -> torch.optim.Optimizer:
    """AdamW, or `Muon` with each group's matrices in a group of their own (``train.optimizer``)."""
    options = {"lr": train.lr, "weight_decay": WEIGHT_DECAY}
    if train.optimizer == "adamw":
        return torch.optim.AdamW(groups, **options)
    parts = []
    for group in groups:
        matrices = [weight for weight in group["params"] if _is_matrix(weight)]
        others = [weight for weight in group["params"] if not _is_matrix(weight)]
        parts.append({**group, "params": others})
        parts.append({**group, "params": matrices, "matrices": True})
    return Muon([part for part in parts if part["params"]], **options)


def _is_matrix(weight: Tensor) -> bool:
    return weight.ndim >= 2 and min(weight.flatten(1).shape) >= MUON_SIDE


def learning_rate_factor(step: int, total: int, warmup: int, final: float = FINAL_LR) -> float:
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
