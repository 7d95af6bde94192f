"""The heads for ablation behind the fusion transformer's interface."""

import pytest
import torch
from rigs_fixture import gaussian_scene, normal
from test_models3d import SMALL, spoiled_scene

from ptri import checkpoint, config
from ptri.errors import UserError
from ptri.evaluation import metrics
from ptri.geometry.cameras import centres, to_reference, transform
from ptri.models.fusion import about_root, mixture
from ptri.models.pose_model import PoseModel
from ptri.models.weights import build_model
from ptri.people.scenes import generate_batch
from ptri.posterior.moments import posterior_from_cameras
from ptri.skeleton import H36M17
from ptri.structures import RigPosterior, take, tree_map
from ptri.training.task3d import RigTask, generated_batch

WITH_CAMERAS = ("fusion", "algebraic", "volumetric")
HEADS = (*WITH_CAMERAS, "fixed_views_mlp")
SIZES = ["model.sizes.volume_size=8", "model.sizes.volume_width=4", "model.sizes.fixed_width=16"]
ROOT = H36M17.root


def head_model(head, *overrides):
    torch.manual_seed(0)
    settings = [*SMALL, *SIZES, f"model.head={head}", *overrides]
    return PoseModel(config.load(None, settings), with_images=False)


def unlike_untrained(model):
    """Gives every weight a value, so that no part of a head says nothing."""
    torch.manual_seed(1)
    for parameter in model.fusion.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model


def uncertain(scene, samples=3, spread=0.02):
    """A posterior of cameras that scatter around the true ones, of unequal weights."""
    generator = torch.Generator().manual_seed(0)
    known = posterior_from_cameras(scene.cameras)
    R, t = (value.expand(samples, *value.shape[1:]).clone() for value in known[:2])
    t[:, :, 1:] += 1000 * spread * torch.randn(t[:, :, 1:].shape, generator=generator)
    weights = torch.randn(samples, len(scene.K), generator=generator).log_softmax(0)
    return RigPosterior(R, t, weights, known.ess, t.new_zeros(samples, len(scene.K), 0))


@pytest.mark.parametrize(
    ("head", "views"), [(head, 4) for head in HEADS] + [("fusion", 2), ("fusion", 7)]
)
def test_every_head_has_the_same_interface(head, views):
    model = unlike_untrained(head_model(head)).eval()
    scene = spoiled_scene(frames=2, views=views)  # joints and views missing, xy NaN
    features = torch.randn(3, 2, views, 17, 64)
    with torch.no_grad():
        plain = model.fuse(scene.keypoints, scene.K, uncertain(scene))
        featured = model.fuse(scene.keypoints, scene.K, uncertain(scene), features)
        extra = tree_map(lambda v: torch.cat([v, v[:, :, :, :2]], 3), scene.keypoints)
        more = model.fuse(extra, scene.K, uncertain(scene))
    assert plain.joints3d.shape == (3, 2, 17, 3) and plain.covariance.shape == (3, 2, 17, 3, 3)
    for prediction in (plain, featured):
        assert bool(torch.isfinite(prediction.joints3d).all())
        others = [joint for joint in range(17) if joint != ROOT]
        smallest = torch.linalg.eigvalsh(prediction.covariance[..., others, :, :].double()).min()
        assert float(smallest) > 0
    assert torch.equal(more.joints3d, plain.joints3d)  # joints beyond the 17 change nothing
    assert not torch.equal(featured.joints3d, plain.joints3d)


def fused(model, scene, order):
    """Joints of views in another order, in the frame of the first of them."""
    keypoints = take(scene.keypoints, (slice(None), slice(None), order))
    cameras = take(scene.cameras, (slice(None), order))
    posterior = posterior_from_cameras(to_reference(cameras))
    with torch.no_grad():
        return model.fuse(keypoints, scene.K[:, :, order], posterior).joints3d


@pytest.mark.parametrize("head", WITH_CAMERAS)
def test_order_and_reference_of_the_views_do_not_matter(head):
    """With view 2 first the joints are the same points in its frame."""
    model = unlike_untrained(head_model(head)).eval()
    scene = spoiled_scene()
    first, other = fused(model, scene, [0, 1, 2, 3]), fused(model, scene, [2, 0, 3, 1])
    moved = transform(first, scene.cameras.R[:, None, 2], scene.cameras.t[:, None, 2])
    assert torch.allclose(moved, other, atol=1.0)  # mm
    assert torch.allclose(first, fused(model, scene, [0, 3, 1, 2]), atol=0.5)
    assert model.fusion.uses_cameras


def test_the_fixed_head_sees_the_order_of_views_and_says_how_many_it_takes():
    model = unlike_untrained(head_model("fixed_views_mlp", "model.sizes.fixed_views=3")).eval()
    scene = spoiled_scene()
    first, other = fused(model, scene, [0, 1, 2]), fused(model, scene, [0, 2, 1])
    assert first.shape == (3, 1, 17, 3) and not torch.allclose(first, other, atol=0.5)
    assert not model.fusion.uses_cameras
    with pytest.raises(UserError, match=r"takes 3 views.*given 4.*data\.views"):
        fused(model, scene, [0, 1, 2, 3])


@pytest.mark.parametrize("head", HEADS)
def test_both_losses_reach_every_weight_and_the_keypoints(head):
    model = unlike_untrained(head_model(head)).train()
    scene = spoiled_scene()
    keypoints = scene.keypoints
    for value in (keypoints.xy, keypoints.confidence):
        value.requires_grad_()
    features = torch.randn(3, 1, 4, 17, 64)
    prediction = model.fuse(keypoints, scene.K, uncertain(scene), features)
    error = (prediction.joints3d - scene.joints3d).square().mean()
    (error + prediction.covariance.square().mean().log()).backward()
    for name, parameter in model.fusion.named_parameters():
        if name.startswith("frames."):  # of clips alone
            continue
        assert parameter.grad is not None and bool(parameter.grad.abs().sum() > 0), name
        assert bool(torch.isfinite(parameter.grad).all()), name
    slope = keypoints.xy.grad[torch.isfinite(keypoints.xy)]
    assert bool(torch.isfinite(slope).all()) and float(slope.abs().max()) > 0
    assert bool(torch.isfinite(keypoints.confidence.grad).all())


@pytest.mark.parametrize(
    ("head", "limit"), [("fusion", 12.0), ("algebraic", 12.0), ("volumetric", 80.0)]
)
def test_untrained_heads_with_cameras_are_near_the_truth(head, limit):
    # Measured 6 mm, 6 mm and, at 20 voxels a side (125 mm), 45 mm.
    model = head_model(head, "model.sizes.volume_size=20").eval()
    keypoints, K, cameras, joints = gaussian_scene(batch=4, noise=0.002, missing=0.0)
    known = posterior_from_cameras(cameras)
    shift = torch.tensor([[0.0, 0, 0], [900, 0, 0], [0, 900, 0], [-900, 0, 0]])  # mm
    wrong = known._replace(t=known.t + shift)  # the control: under wrong cameras they are not
    with torch.no_grad():
        near, away = (
            metrics.mpjpe(model.fuse(keypoints, K, rig).joints3d, joints.float()).mean()
            for rig in (known, wrong)
        )
    assert float(near) < limit and float(away) > 2 * limit


def test_uncertain_cameras_widen_the_covariance():
    scene = spoiled_scene()
    for head in WITH_CAMERAS:
        model = head_model(head).eval()
        with torch.no_grad():
            narrow, wide = (
                model.fuse(scene.keypoints, scene.K, uncertain(scene, 4, spread)).covariance
                for spread in (0.0, 0.3)
            )
        sizes = [value[:, :, :ROOT].diagonal(dim1=-2, dim2=-1).sum() for value in (narrow, wide)]
        assert sizes[1] > 1.2 * sizes[0], head


def test_algebraic_weights_follow_what_the_detector_says():
    model = unlike_untrained(head_model("algebraic")).eval()
    scene = spoiled_scene()
    frame, K = take((scene.keypoints, scene.K), (slice(None), 0))
    with torch.no_grad():
        weight, doubted = (
            model.fusion.weights(frame._replace(covariance=factor * frame.covariance), K, None)
            for factor in (1, 9)
        )
    seen = torch.isfinite(frame.xy).all(-1)
    assert bool((weight[~seen] == 0).all()) and bool((weight[seen] > 0).all())
    assert not torch.allclose(weight[seen], doubted[seen])


def test_volumes_that_cannot_be_halved_are_refused():
    with pytest.raises(UserError, match=r"model\.sizes\.volume_size.*multiple of 2"):
        head_model("volumetric", "model.sizes.volume_size=9")


def test_weights_of_another_head_are_refused(tmp_path):
    path = tmp_path / "algebraic.pt"
    model = head_model("algebraic")
    other = [*SMALL, *SIZES, f"init.checkpoint_3d={path}"]
    settings = config.to_dict(config.load(None, [*other, "model.head=algebraic"]))
    checkpoint.save_weights(path, model.state_dict(), {"model": settings["model"]})
    with pytest.raises(UserError, match=r"holds the head algebraic.*asks for fusion"):
        build_model(config.load(None, other), with_images=False)
    same = build_model(config.load(None, [*other, "model.head=algebraic"]), with_images=False)
    assert same.fusion.uses_cameras
    # Files from before there was a choice hold the fusion.
    shipped = "init.checkpoint_3d=checkpoints/ptri_3d.pt"
    build_model(config.load(None, ["run.name=test", shipped]), with_images=False)
    with pytest.raises(UserError, match=r"holds the head fusion.*train\.new=head"):
        build_model(config.load(None, ["run.name=t", shipped, "model.head=volumetric"]), False)


def test_a_new_head_keeps_the_lifter(tmp_path):
    path = tmp_path / "old.pt"
    old = head_model("fusion")
    checkpoint.save_weights(path, old.state_dict(), {})
    named = [*SMALL, *SIZES, "data.kind=generated", "model.head=fixed_views_mlp"]
    named += ["train.new=head", "train.batch_size=4", "model.sizes.fixed_views=3"]
    named += ["generated.min_views=3", "generated.max_views=3", f"init.checkpoint_3d={path}"]
    task = RigTask(config.load(None, named))
    model = task.build_model().train()
    for kept, own in zip(old.lifter.parameters(), model.lifter.parameters()):
        assert torch.allclose(kept, own, atol=1e-3) and not own.requires_grad
    # It looks at no cameras, so none are solved.
    values = task.training_step(model, generated_batch(task.config, 0, 1), 1)
    values["loss"].mean().backward()
    idle = {name for name, p in model.fusion.named_parameters() if p.grad is None}
    assert idle == {"features.weight", "view_features.weight"}  # there are no images
    with pytest.raises(UserError, match=r"train\.lifter_epochs"):
        RigTask(config.load(None, [*named, "train.lifter_epochs=1"])).build_model()


def test_ordered_views_go_round_the_person():
    settings = [*SMALL, "generated.families=[h36m_ring]", "generated.ordered_views=true"]
    scene = generate_batch(config.load(None, settings), 0, 0, 20, 4)
    # In view 0's frame: x right, z forward.
    away = centres(scene.cameras.R, scene.cameras.t) - scene.joints3d[:, :1, ROOT]
    angle = torch.atan2(away[..., 2], away[..., 0])
    turn = (angle[:, 1:] - angle[:, :-1]) % (2 * torch.pi)
    assert float((turn.sum(1) < 2 * torch.pi).float().mean()) == 1.0  # one way, not back and forth
    mixed = generate_batch(config.load(None, settings[:-1]), 0, 0, 20, 4)
    assert not torch.equal(mixed.cameras.R, scene.cameras.R)


def test_mixture_covers_cameras_and_joints():
    """Coverage of the joints' regions, where the stated law is the true one: nominal."""
    M, tries = 200, 400
    truth, shared = 500 * normal(1, 17, 3), 30 * normal(M, 1, 1, 3, seed=1)
    pull = torch.linspace(0, 1, 17).double()[:, None]  # what the cameras do to each joint
    noise = 20 * normal(tries, 1, 17, 3, seed=2)
    covariance = about_root(400 * torch.eye(3).double().expand(M, 1, 17, 3, 3))
    weights = torch.zeros(M, 1).double().log_softmax(0)
    mean, spread = mixture(truth + pull * shared, covariance, weights)

    def share(spread):
        answers = (truth + pull * shared[m % M] + noise[m] for m in range(tries))
        parts = [metrics.joint_coverage(mean, spread, x) for x in answers]
        return torch.stack(parts).mean((0, 1))

    inside, narrow = share(spread), share(covariance[0])
    assert abs(inside[0] - 0.5) < 0.05 and abs(inside[1] - 0.9) < 0.03
    assert narrow[1] < inside[1] - 0.02  # the control, no spread between samples: measured 0.86
