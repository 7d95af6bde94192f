"""The whole 3D model: images -> keypoints -> rays -> rig posterior -> fusion -> joints."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ptri.config import Config
from ptri.config_sections import PosteriorConfig
from ptri.geometry.triangulation import ray_moments, triangulate
from ptri.models.heads import make_head
from ptri.models.heatmap import sample_features
from ptri.models.lifter import NUM_JOINTS, Lifted, Lifter
from ptri.models.network2d import Detection, Network2D
from ptri.models.sizes import sizes_of
from ptri.posterior.adjust import Bundle
from ptri.posterior.body import BodyPrior, load_body_prior
from ptri.posterior.sampling import (
    Poses,
    RigSolution,
    normalise,
    posterior_from_cameras,
    posterior_mean,
    resample,
    rig_posterior,
)
from ptri.posterior.starts import pooled_starts, rig_starts
from ptri.skeleton import H36M17
from ptri.structures import (
    MANY_FRAMES,
    UNKNOWN_DETECTOR,
    Cameras,
    Detector,
    Keypoints,
    Observations,
    Prediction,
    RigPosterior,
    cat,
)
from ptri.system import one_thread
from ptri.verdict.judge import judge, verdict
from ptri.verdict.mending import mend
from ptri.verdict.readings import Sides, apply_sides, in_order, read_rigs, read_under

IMAGES_AT_ONCE = 8  # on a CPU: activations of more leave its caches, three times slower
PERSON_SIGMA = 1000.0  # mm, of a joint around the person's root before it is triangulated
SLACK_GROWTH = 1 / 3  # of a bone's slack with the number of frames


class Output(NamedTuple):
    """What one training step needs."""

    keypoints: Keypoints  # (B, T, V, J, ...)
    detection: Detection | None  # of B T V images
    lifted: Lifted | None  # (B, T, V, J, ...)
    solution: RigSolution | None
    prediction: Prediction | None  # (B, T, J, ...)


class PoseModel(nn.Module):
    """3D joints from several cameras whose poses are unknown."""

    def __init__(
        self, config: Config, with_images: bool = True, detector: Detector = UNKNOWN_DETECTOR
    ) -> None:
        """
        Args:
            config: sections model and posterior.
            with_images: with the 2D network; without it the model starts from keypoints.
            detector: what is known of where the keypoints come from.
        """
        super().__init__()
        model = config.model
        sizes = sizes_of(model)
        self.network2d = Network2D(model) if with_images else None
        self.lifter = Lifter(sizes.lifter_width, sizes.lifter_blocks)
        self.fusion = make_head(model)  # a fusion transformer, or a head for ablation
        self.fusion_samples = model.fusion_samples
        options = config.posterior
        self.settings = options
        self.bone_slack, self.bone_definition = options.bone_slack, options.bone_definition
        self.children_share = options.children
        self.detector = detector

    def train(self, mode: bool = True) -> PoseModel:
        """Training mode; the 2D network's BatchNorm keeps its statistics, so that a result does
        not depend on the batch (or the process) it is computed in."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def forward(
        self,
        K: Tensor,
        images: Tensor | None = None,
        keypoints: Keypoints | None = None,
        cameras: Cameras | None = None,
        lift_only: bool = False,
        seed: int = 0,
        settings: PosteriorConfig | None = None,
        start: tuple[Cameras, Tensor] | None = None,
        posterior: RigPosterior | None = None,
        gradient_2d: float = 1.0,
    ) -> Output:
        """One training step's forward pass, from images or from keypoints.

        Args:
            K: (B, T, V, 3, 3) px.
            images: (B, T, V, 3, H, W). keypoints: (B, T, V, J, ...) px, in their place.
            cameras: (B, V, ...) true ones, to fuse under instead of the posterior.
            lift_only: stop after the lifter.
            start: cameras (B, V, ...) and joints (B, T, 17, 3) mm to start from besides the
                lifted ones: the truth, where the lifter is yet untrained.
            posterior: solved before; to fuse under, without lifting.
            gradient_2d: factor on the gradient from 3D into the 2D network.
        """
        detection, features = None, None
        if keypoints is None:
            detection = self.detect(images.flatten(0, 2))
            shape = images.shape[:3]
            keypoints = Keypoints(*(v.unflatten(0, shape) for v in detection.keypoints))
            features = self.joint_features(detection).unflatten(0, shape)
            keypoints = Keypoints(*(_scale_gradient(value, gradient_2d) for value in keypoints))
            features = _scale_gradient(features, gradient_2d)
        if posterior is not None:
            prediction = self.fuse(keypoints, K, posterior, features)
            return Output(keypoints, detection, None, None, prediction)
        observed = Keypoints(*(value.detach().float() for value in keypoints))
        lifted = self.lifter(observed, K.float())
        if lift_only:
            return Output(keypoints, detection, lifted, None, None)
        if cameras is not None:
            posterior, solution = posterior_from_cameras(cameras), None
        else:
            solution = self.solve_full(keypoints, K, seed, settings, lifted=lifted, start=start)
            posterior = solution.posterior
        prediction = self.fuse(keypoints, K, posterior, features)
        return Output(keypoints, detection, lifted, solution, prediction)

    def detect(self, images: Tensor) -> Detection:
        """Keypoints, heatmaps and features of images (N, 3, H, W), see `Network2D`."""
        if self.network2d is None:
            raise ValueError("this model was built without its 2D network")
        if images.device.type != "cpu" or torch.is_grad_enabled():
            return self.network2d(images)
        parts = [self.network2d(part) for part in images.split(IMAGES_AT_ONCE)]
        keypoints = (torch.cat(values) for values in zip(*(part.keypoints for part in parts)))
        maps = [torch.cat(values) for values in zip(*(part.maps for part in parts))]
        logits, features = (
            torch.cat([getattr(part, name) for part in parts]) for name in ("logits", "features")
        )
        return Detection(Keypoints(*keypoints), logits, features, maps)

    @one_thread()
    @torch.autocast("cpu", enabled=False)
    @torch.autocast("cuda", enabled=False)
    def solve_full(
        self,
        keypoints: Keypoints,
        K: Tensor,
        seed: int = 0,
        settings: PosteriorConfig | None = None,
        log_scale: float = 0.0,
        lifted: Lifted | None = None,
        start: tuple[Cameras, Tensor] | None = None,
        frames: Tensor | None = None,
        judged: bool = True,
        read: bool = True,
    ) -> RigSolution:
        """The rig posterior with what it was computed from; see `solve`.

        Args:
            frames: (T,) numbers of the frames, in which shifts in time are told; default 0 to
                T - 1.
            judged: with a verdict; in evaluation, rigs with one bad view are then solved again
                (see `ptri.verdict.mending`).
            read: with left and right read anew first, in evaluation (see `ptri.verdict.readings`).
        """
        settings = self.settings if settings is None else settings
        J = keypoints.xy.shape[-2]
        if lifted is None:
            lifted = self._lift(keypoints, K)
        if read and not self.training:
            keypoints = apply_sides(keypoints, self._read_rigs(keypoints, K, lifted, log_scale))
            lifted = self._lift(keypoints, K)
        # A log density over many frames needs the digits: in float32 it wobbles by parts of a nat.
        keypoints, K = Keypoints(*(value.double() for value in keypoints)), K.double()
        body = self.body_prior(J, K, log_scale, keypoints.xy.shape[1])
        stated, keypoints = keypoints, self._as_precise_as_measured(keypoints)
        observations = normalise(keypoints, K)
        with torch.no_grad():
            seen = observations.inlier[..., :NUM_JOINTS]
            trust = (seen / lifted.sigma.square()).to(K)
            # Training takes the cheap starts; evaluation all of them.
            mirrored = not self.training
            starts = rig_starts(lifted.joints3d.to(K), trust, body, mirrored)
            if start is not None:
                starts = _append(starts, *start)
            if not self.training and keypoints.xy.shape[1] >= MANY_FRAMES:
                own = pooled_starts(keypoints, K, starts, body, seed=seed)
                starts = cat([starts, own], dim=1)
            starts = _extend(starts, observations)
        sigma = lifted.sigma.to(K).masked_fill(seen <= 0, torch.inf)
        poses = Poses(lifted.joints3d.detach().to(K), sigma.detach())
        solution = rig_posterior(
            observations, starts, body, settings, seed, poses,
            correlated=not self.training, frame_worth=self.detector.frame_worth,
        )  # fmt: skip
        if not judged:
            return solution
        if self.training:
            return judge(solution, settings, views=False)

        def again(keypoints: Keypoints, K: Tensor, rows: Tensor) -> RigSolution:
            return self.solve_full(
                keypoints, K, seed, settings, log_scale, judged=False, read=False
            )

        found = verdict(solution, settings, frames)
        return mend(solution, found, stated, K, again, settings, frames)

    @torch.no_grad()
    def _lift(self, keypoints: Keypoints, K: Tensor) -> Lifted:
        return self.lifter(Keypoints(*(value.float() for value in keypoints)), K.float())

    @torch.no_grad()
    def _read_rigs(
        self, keypoints: Keypoints, K: Tensor, lifted: Lifted, log_scale: float
    ) -> Sides:
        """How left and right are to be read, from the keypoints alone."""
        named = Keypoints(*(value[:, :, :, :NUM_JOINTS].float() for value in keypoints))
        flip = torch.tensor(H36M17.flip, device=K.device)
        other = Keypoints(*(value.index_select(3, flip) for value in named))
        skeletons = (each.joints3d.double() for each in (lifted, self.lifter(other, K.float())))
        observations = self._observe(named, K)
        trust = observations.inlier / lifted.sigma.double().square()
        body = self.body_prior(NUM_JOINTS, K.double(), log_scale, keypoints.xy.shape[1])
        return read_rigs(observations, *skeletons, trust, body)

    def _observe(self, keypoints: Keypoints, K: Tensor) -> Observations:
        """Keypoints (B, T, V, J, ...) px, normalised, float64, as precise as measured."""
        precise = self._as_precise_as_measured(keypoints)
        precise = Keypoints(*(value.double() for value in precise))
        return normalise(precise, K.double())

    def _as_precise_as_measured(self, keypoints: Keypoints) -> Keypoints:
        """Keypoints (B, T, ...) whose covariances are no wider than `Detector.overstated` says.

        A network that is trained to cover its own gross errors reports more than the noise of its
        good keypoints; gross errors have their own part in the posterior's likelihood. In a few
        frames they cannot be told from noise: there what it reports stands.
        """
        if not self.detector.overstated or keypoints.xy.shape[1] < MANY_FRAMES:
            return keypoints
        factor = keypoints.covariance.new_ones(keypoints.covariance.shape[-3])
        factor[:NUM_JOINTS] = keypoints.covariance.new_tensor(self.detector.overstated) ** -2
        return keypoints._replace(covariance=keypoints.covariance * factor[:, None, None])

    def solve(
        self, keypoints: Keypoints, K: Tensor, seed: int = 0, log_scale: float = 0.0
    ) -> RigPosterior:
        """The posterior of each rig's cameras from the keypoints of its frames.

        Args:
            keypoints: (B, T, V, J, ...) px. The first 17 joints are Human3.6M's; further ones
                take part in the geometry.
            K: (B, T, V, 3, 3) px of the images the keypoints are in.
            seed: of the Monte-Carlo noise.
            log_scale: the subject's size over the prior's mean, log; 0 = unknown subject.

        Returns:
            Samples (M, B, V, ...) in mm, view 0's frame; float64.
        """
        return self.solve_full(keypoints, K, seed, log_scale=log_scale).posterior

    @torch.autocast("cpu", enabled=False)
    @torch.autocast("cuda", enabled=False)
    def fuse(
        self,
        keypoints: Keypoints,
        K: Tensor,
        posterior: RigPosterior,
        joint_features: Tensor | None = None,
    ) -> Prediction:
        """Joints of T successive frames under a rig posterior (of these frames or of others).

        Heads that look at cameras are given the keypoints with left and right read anew under the
        posterior's mean cameras (see `ptri.verdict.readings`), true cameras included.

        Args:
            keypoints: (B, T, V, J, ...) px; K: (B, T, V, 3, 3) px.
            posterior: of B rigs.
            joint_features: (B, T, V, 17, C) backbone features at the keypoints.

        Returns:
            (B, T, 17, 3) mm in view 0's frame and (B, T, 17, 3, 3) mm^2, root-relative; float32.
        """
        B, T = keypoints.xy.shape[:2]
        if self.fusion.uses_cameras:
            with torch.no_grad():
                R, t = (value.double() for value in posterior_mean(posterior))
                sides = read_under(self._observe(keypoints, K), R, t)
            keypoints = apply_sides(keypoints, sides)
            if joint_features is not None:
                joint_features = in_order(joint_features, sides.order)
        R, t, log_weights = resample(posterior, self.fusion_samples)
        M, _, V = R.shape[:3]
        R = R[:, :, None].expand(M, B, T, V, 3, 3).reshape(M, B * T, V, 3, 3)
        t = t[:, :, None].expand(M, B, T, V, 3).reshape(M, B * T, V, 3)
        log_weights = log_weights[:, :, None].expand(M, B, T).reshape(M, B * T)
        if joint_features is not None:
            joint_features = joint_features.flatten(0, 1).float()
        prediction = self.fusion(
            Keypoints(*(value.flatten(0, 1).float() for value in keypoints)),
            K.flatten(0, 1).float(), R.float(), t.float(), log_weights.float(), joint_features,
            num_frames=T,
        )  # fmt: skip
        return Prediction(*(value.unflatten(0, (B, T)) for value in prediction))

    def body_prior(
        self, num_joints: int, like: Tensor, log_scale: float = 0.0, num_frames: int = 1
    ) -> BodyPrior:
        """The prior on bones, of the dtype and on the device of a tensor.

        Bones bend the posterior of a limb's direction, and what Laplace's approximation makes of
        that adds up over frames, while the cameras' uncertainty shrinks with them. So the more
        frames, the less a bone is held to its length.
        """
        slack = self.bone_slack * num_frames**SLACK_GROWTH
        prior = load_body_prior(
            num_joints,
            slack,
            self.bone_definition,
            log_scale,
            ratio=self.detector.bone_ratio,
            children=self.children_share,
        )
        return prior.to(like.device, like.dtype)

    def joint_features(self, detection: Detection) -> Tensor:
        """Backbone features (N, J, C) at the keypoints of N images."""
        return sample_features(detection.features.float(), detection.keypoints.xy)


def _scale_gradient(value: Tensor, factor: float) -> Tensor:
    """The same values, whose gradient is multiplied by a factor on its way back."""
    if factor == 1:
        return value
    fixed = value.detach()
    return fixed + factor * (value - fixed) if factor else fixed


def _append(starts: Bundle, cameras: Cameras, joints: Tensor) -> Bundle:
    """One more candidate (B, C + 1, ...), with the bones of the others."""
    own = Bundle(cameras.R, cameras.t, joints, starts.log_lengths[:, 0])
    return Bundle(
        *(torch.cat([all_, one[:, None].to(all_)], dim=1) for all_, one in zip(starts, own))
    )


def _extend(starts: Bundle, observations: Observations) -> Bundle:
    """Adds the joints that the lifter does not know, triangulated under each start's cameras."""
    B, T, V, J, _ = observations.xy.shape
    extra = J - NUM_JOINTS
    if not extra:
        return starts
    root = starts.joints[..., H36M17.root, :]  # (B, C, T, 3)
    distance = root.norm(dim=-1).mean((1, 2))[:, None, None, None]
    weight = observations.inlier[..., NUM_JOINTS:] / distance.square()
    moments = ray_moments(
        observations.xy[..., NUM_JOINTS:, :],
        observations.information[..., NUM_JOINTS:, :, :] * weight[..., None, None],
    )
    moments = moments.permute(0, 1, 3, 2, 4).reshape(B, T * extra, V, 6)
    anchor = root.mean(1)[:, :, None].expand(B, T, extra, 3).reshape(B, T * extra, 3)
    R, t = starts.R.transpose(0, 1).to(moments), starts.t.transpose(0, 1).to(moments)
    points, _, _ = triangulate(moments, R, t, anchor.to(moments), PERSON_SIGMA**-2)
    points = points.transpose(0, 1).unflatten(2, (T, extra)).to(starts.joints)
    return starts._replace(joints=torch.cat([starts.joints, points], dim=-2))
