"""The fusion transformer: rays and features of all views, under each camera sample, to joints.

For each of a few posterior samples the joints are triangulated robustly; every view's ray of every
joint becomes a token in a frame that turns with the body, so that neither the reference view nor
the order or number of views matters. Attention runs over the views of a joint, then over the
joints; the network predicts a correction of each joint and its covariance. The weighted spread
over the samples is added to the covariance, which is how pose uncertainty reaches the joints.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ptri.geometry.cameras import centres
from ptri.geometry.rays import normalise
from ptri.geometry.rotations import upright_axes
from ptri.geometry.triangulation import (
    START_DEPTH,
    ray_moments,
    reproject,
    triangulate,
    weighted_triangulation,
)
from ptri.skeleton import H36M17
from ptri.structures import Keypoints, Prediction, constant

JOINTS = H36M17.joints
NUM_JOINTS = len(JOINTS)
LENGTH = 500.0  # mm, unit of the network's lengths
PRIOR_SIGMA = 2000.0  # mm, keeps joints that fewer than two views see finite
WIDTHS = (16.0, 8.0, 5.0, 3.0, 3.0)  # standard deviations, of the weights of each round


def body_keypoints(keypoints: Keypoints) -> Keypoints:
    """The first 17 joints, Human3.6M's, of keypoints (N, V, J >= 17, ...)."""
    return Keypoints(
        keypoints.xy[..., :NUM_JOINTS, :],
        keypoints.covariance[..., :NUM_JOINTS, :, :],
        keypoints.confidence[..., :NUM_JOINTS],
    )


def robust_joints(
    keypoints: Keypoints,
    K: Tensor,
    R: Tensor,
    t: Tensor,
    widths: tuple[float, ...] = WIDTHS,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Iteratively reweighted triangulation under each camera sample, differentiable.

    Geman-McClure weights whose width shrinks over the rounds (graduated non-convexity).

    Args:
        keypoints: (N, V, J, ...); K: (N, V, 3, 3); R, t: (M, N, V, ...).
        widths: of the rounds, standard deviations; infinity weighs by confidence alone.

    Returns:
        Joints (M, N, J, 3) mm, covariances (M, N, J, 3, 3) mm^2, weights (M, N, V, J) and
        normalised residuals (M, N, V, J, 2) over the expected standard deviation. Computed in
        float64 (a joint that one view sees has a condition number of 1e6), returned in K's type.
    """
    dtype = K.dtype
    R, t = R.double(), t.double()
    frame = Keypoints(*(value.unsqueeze(1).double() for value in keypoints))
    observations = normalise(frame, K.unsqueeze(1).double())  # (N, 1, V, J, ...)
    confidence = observations.inlier[None]
    # The middle of the rays' closest points serves where a joint has too few of them.
    scaled = observations.information * (observations.inlier / START_DEPTH**2)[..., None, None]
    together = ray_moments(observations.xy, scaled).mean(-2)  # (N, 1, V, 6)
    prior, _, _ = triangulate(together, R, t, torch.zeros_like(R[0, :, :1, 0]), 1e-12)
    prior = prior.unsqueeze(-2)  # (M, N, 1, 1, 3)
    weight, depth = confidence.expand(len(R), *confidence.shape[1:]), START_DEPTH
    for width in (*widths, None):
        points, covariance = weighted_triangulation(
            observations, R, t, weight, depth, prior, PRIOR_SIGMA**-2
        )
        at = reproject(points, observations, R, t)
        if width is not None:
            weight, depth = confidence * at.front / (1 + at.chi2 / width**2).square(), at.depth
    sigma = observations.information.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt()
    joints = points, covariance, weight, at.error * sigma
    return tuple(value[:, :, 0].to(dtype) for value in joints)


def body_frame(joints: Tensor) -> Tensor:
    """Rotations (..., 3, 3), reference to body: x to the left, y up the spine, z = x cross y."""
    left = sum(
        joints[..., JOINTS.index(f"left_{name}"), :] - joints[..., JOINTS.index(f"right_{name}"), :]
        for name in ("hip", "shoulder")
    )
    up = joints[..., JOINTS.index("thorax"), :] - joints[..., H36M17.root, :]
    # A tenth of a millimetre along the axes gives joints that coincide a frame too.
    nudge = 0.1 * torch.eye(3, dtype=joints.dtype, device=joints.device)
    return upright_axes(left + nudge[0], up + nudge[1])


def about_root(covariance: Tensor) -> Tensor:
    """Covariances (..., J, 3, 3) of joints that err independently, less the root; its own stays."""
    others = torch.arange(NUM_JOINTS, device=covariance.device) != H36M17.root
    root = covariance[..., H36M17.root, None, :, :]
    return covariance + others[:, None, None] * root


def mixture(joints: Tensor, covariance: Tensor, log_weights: Tensor) -> Prediction:
    """Joints over weighted camera samples: their mean; covariance within plus between samples.

    Args:
        joints: (M, N, J, 3) mm. covariance: (M, N, J, 3, 3) mm^2 of the root-relative joints.
        log_weights: (M, N), normalised over M.
    """
    share = log_weights.exp()
    mean = torch.einsum("mn,mnjc->njc", share, joints)
    relative = joints - joints[..., H36M17.root, None, :]
    deviation = relative - torch.einsum("mn,mnjc->njc", share, relative)
    spread = torch.einsum("mn,mnja,mnjb->njab", share, deviation, deviation)
    return Prediction(mean, torch.einsum("mn,mnjab->njab", share, covariance) + spread)


class _Layer(nn.Module):
    """Self-attention over the views of each joint, then over the joints of each view."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        options = {"batch_first": True, "norm_first": True, "dropout": 0.0, "activation": "gelu"}
        self.views = nn.TransformerEncoderLayer(width, num_heads, 2 * width, **options)
        self.joints = nn.TransformerEncoderLayer(width, num_heads, 2 * width, **options)

    def forward(self, x: Tensor, missing: Tensor) -> Tensor:
        """x (N, J, V, D); missing (N, J, V) bool."""
        N, J, V, D = x.shape
        x = self.views(x.reshape(N * J, V, D), src_key_padding_mask=missing.reshape(N * J, V))
        x = x.reshape(N, J, V, D).transpose(1, 2).reshape(N * V, J, D)
        return self.joints(x).reshape(N, V, J, D).transpose(1, 2)


class Frames(nn.Module):
    """Attention of each joint to itself in the neighbouring frames of a clip.

    Half of the heads look anywhere in the window, at what does not change: the body. The others
    start with a preference for near frames (a slope on the distance, as Press et al. 2022, learned
    here). The output starts at zero, so that it can be added to trained weights.
    """

    def __init__(self, width: int, num_heads: int, window: int) -> None:
        """
        Args:
            window: odd; frames that one looks at, itself in the middle.
        """
        super().__init__()
        self.num_heads, self.reach = num_heads, window // 2
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, 3 * width)  # query, key, value
        self.output = nn.Linear(width, width)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)
        near = torch.arange(num_heads) % 2
        self.slope = nn.Parameter(near * 2.0 ** -(1.0 + torch.arange(num_heads) // 2))  # nats/frame

    def forward(self, x: Tensor, num_frames: int) -> Tensor:
        """x (N, J, D), N clips of so many frames one after the other; what to add to it."""
        N, J, D = x.shape
        clips = x.unflatten(0, (N // num_frames, num_frames)).transpose(1, 2).flatten(0, 1)
        parts = self.project(self.norm(clips)).chunk(3, dim=-1)  # (C J, T, D) each
        query, key, value = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in parts
        )
        time = torch.arange(num_frames, device=x.device)
        distance = (time[:, None] - time).abs()
        bias = -self.slope[:, None, None] * distance.to(x.dtype)
        bias = bias.masked_fill(distance > self.reach, -torch.inf)
        found = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        found = self.output(found.transpose(1, 2).flatten(2))  # (C J, T, D)
        return found.unflatten(0, (-1, J)).transpose(1, 2).reshape(N, J, D)


class FusionTransformer(nn.Module):
    """Metric joints with covariance from keypoints and weighted camera samples."""

    uses_cameras = True

    def __init__(
        self,
        width: int = 96,
        num_layers: int = 3,
        num_heads: int = 4,
        num_features: int = 64,
        frames: int = 0,
    ) -> None:
        """
        Args:
            frames: odd; how many of a clip a frame looks at (see `Frames`); 0: itself alone.
        """
        super().__init__()
        self.ray = nn.Linear(3 + 3 + 3 + 1 + 1 + 1 + 2 + 3 + 6, width)
        self.features = nn.Linear(num_features, width, bias=False)
        nn.init.zeros_(self.features.weight)  # pre-training without images changes nothing
        self.joint = nn.Parameter(0.02 * torch.randn(NUM_JOINTS, width))
        self.layers = nn.ModuleList(_Layer(width, num_heads) for _ in range(num_layers))
        self.frames = nn.ModuleList(
            Frames(width, num_heads, frames) for _ in range(num_layers if frames else 0)
        )
        self.output = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 3 + 6))
        nn.init.normal_(self.output[1].weight, std=1e-3)
        nn.init.zeros_(self.output[1].bias)

    def forward(
        self,
        keypoints: Keypoints,
        K: Tensor,
        R: Tensor,
        t: Tensor,
        log_weights: Tensor,
        joint_features: Tensor | None = None,
        num_frames: int = 1,
    ) -> Prediction:
        """
        Args:
            keypoints: (N, V, J >= 17, ...) px, the first 17 joints those of Human3.6M.
            K: (N, V, 3, 3) px. R, t: (M, N, V, ...) camera samples, mm.
            log_weights: (M, N), normalised over M.
            joint_features: (N, V, 17, C) backbone features at the keypoints.
            num_frames: the N are clips of so many frames in order, of one rig and person each.

        Returns:
            Joints (N, 17, 3) mm, reference frame, and covariances (N, 17, 3, 3) mm^2 of the
            root-relative joints (the root's own is of its correction).
        """
        keypoints = body_keypoints(keypoints)
        points, covariance, weight, residual = robust_joints(keypoints, K, R, t)
        M, N, V, J = weight.shape
        root = points[..., H36M17.root, None, :]
        frame = body_frame(points)  # (M, N, 3, 3)
        tokens = self._tokens(keypoints, K, R, t, points, covariance, weight, residual, root, frame)
        x = self.ray(tokens) + self.joint
        if joint_features is not None:
            x = x + self.features(joint_features)
        missing = (weight <= 0).expand(M, N, V, J).transpose(2, 3).reshape(M * N, J, V)
        # A joint that no view sees attends to its empty tokens instead of to nothing.
        missing = missing & ~missing.all(-1, keepdim=True)
        x = x.transpose(2, 3).reshape(M * N, J, V, -1)
        present = (~missing).to(x.dtype).unsqueeze(-1)
        for number, layer in enumerate(self.layers):
            x = layer(x, missing)
            if self.frames and num_frames > 1:
                joint = (x * present).sum(2) / present.sum(2)
                x = x + self.frames[number](joint, num_frames).unsqueeze(2)
        x = (x * present).sum(2) / present.sum(2)  # (M N, J, D)
        result = self.output(x).unflatten(0, (M, N))
        # Corrections grow with the triangulation's own uncertainty.
        variance = covariance.diagonal(dim1=-2, dim2=-1).sum(-1)
        sigma = variance.clamp(5.0**2, LENGTH**2).sqrt()
        correction = sigma.unsqueeze(-1) * result[..., :3]
        joints = points + correction @ frame
        chol = cholesky(result[..., 3:]) * sigma[..., None, None]
        chol = frame.mT.unsqueeze(2) @ chol  # body to reference frame
        return mixture(joints, chol @ chol.mT, log_weights)

    def _tokens(self, keypoints, K, R, t, points, covariance, weight, residual, root, frame):
        """(M, N, V, J, F) inputs, lengths over ``LENGTH``, vectors in the body's frame."""
        M, N, V, J = weight.shape
        seen = torch.isfinite(keypoints.xy).all(-1) & (keypoints.confidence > 0)
        focal = K.diagonal(dim1=-2, dim2=-1)[..., :2].mean(-1)  # (N, V)
        xy = torch.where(seen[..., None], keypoints.xy, K[..., None, :2, 2])
        rays = (xy - K[..., None, :2, 2]) / K.diagonal(dim1=-2, dim2=-1)[..., None, :2]
        rays = torch.cat([rays, torch.ones_like(rays[..., :1])], dim=-1)
        rays = rays / rays.norm(dim=-1, keepdim=True)
        direction = torch.einsum("mnvki,nvjk->mnvji", R, rays)  # reference frame
        eye = centres(R, t).unsqueeze(-2) - points.unsqueeze(2)  # joint to camera
        foot = eye - (eye * direction).sum(-1, keepdim=True) * direction  # joint to ray
        distance = eye.norm(dim=-1, keepdim=True).clamp_min(1.0)
        variance = 0.5 * keypoints.covariance.diagonal(dim1=-2, dim2=-1).sum(-1).clamp_min(1e-8)
        noise = variance.sqrt() / focal[..., None]  # rad
        own = (distance[..., 0] * noise / 20.0).clamp(1e-3, 1e3).log()  # of 20 mm
        turn = frame.mT.unsqueeze(2).unsqueeze(3)  # row vectors: reference to body

        def body(vector: Tensor) -> Tensor:
            return (vector.unsqueeze(-2) @ turn).squeeze(-2)

        place = body((points - root).unsqueeze(2).expand(M, N, V, J, 3)) / LENGTH
        spread = frame.unsqueeze(2) @ covariance @ frame.mT.unsqueeze(2)
        sigma = spread.diagonal(dim1=-2, dim2=-1).clamp(1.0, 2000.0**2).sqrt()
        correlation = spread / (sigma.unsqueeze(-1) * sigma.unsqueeze(-2))
        rows, columns = (constant(part, R.device) for part in ((0, 0, 1), (1, 2, 2)))
        shape = torch.cat([(sigma / 50.0).log(), correlation[..., rows, columns]], dim=-1)
        confidence = keypoints.confidence.expand(M, N, V, J)
        tokens = torch.cat(
            [
                place,
                body(direction),
                (body(foot) / 50.0).clamp(-5, 5),
                confidence[..., None],
                weight[..., None],
                own[..., None],
                (residual / 3.0).clamp(-5, 5),
                body(R[..., 1, :].unsqueeze(3).expand(M, N, V, J, 3)),  # the image's down
                shape.unsqueeze(2).expand(M, N, V, J, 6),
            ],
            dim=-1,
        )
        return torch.where(
            seen[..., None],
            tokens,
            torch.cat([place, torch.zeros_like(tokens[..., 3:17]), tokens[..., 17:]], dim=-1),
        )


def cholesky(values: Tensor) -> Tensor:
    """Lower triangular (..., 3, 3) with positive diagonal from six free numbers."""
    diagonal = nn.functional.softplus(values[..., :3] + 0.5) + 0.05  # of the triangulation's sigma
    a, b, c = values[..., 3:].unbind(-1)
    x, y, z = diagonal.unbind(-1)
    zero = torch.zeros_like(a)
    return torch.stack([x, zero, zero, a, y, zero, b, c, z], dim=-1).unflatten(-1, (3, 3))
