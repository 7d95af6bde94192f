"""Generated scenes: rigs see the person and look like their family; seeds, splits, frames."""

import math

import pytest
import torch
from test_retarget import write_mocap

from ptri.config import Config, RunConfig, load, replace
from ptri.errors import UserError
from ptri.geometry.cameras import centres, project, transform
from ptri.people.bodies import sample_clips
from ptri.people.draws import Draws
from ptri.people.rigs import FAMILY_NAMES, Rig, look_at, sample_rigs
from ptri.people.scenes import Scene, draw_num_views, generate_batch
from ptri.skeleton import H36M17
from ptri.structures import Cameras, take, tree_map

CONFIG = Config(run=RunConfig(name="test"))


def make(family: str, num_views: int, batch: int = 40, **options) -> tuple[Rig, torch.Tensor]:
    stream = Draws.from_seeds([(0, i) for i in range(batch)])
    joints = sample_clips(stream, 2, 10.0).joints3d
    joints = joints + 500 * stream.normal(1, 1, 3) * torch.tensor([1.0, 1, 0])
    index = torch.full((batch,), FAMILY_NAMES.index(family))
    return sample_rigs(stream, index, joints, num_views, **options), joints


def share_inside(rig: Rig, joints: torch.Tensor) -> torch.Tensor:
    """(B, V) share of the joints inside the image; also checks that all are in front."""
    points = joints.flatten(1, 2).unsqueeze(1)
    view = transform(points, rig.cameras.R, rig.cameras.t)
    assert view[..., 2].min() > 799  # mm
    pixels = (view @ rig.cameras.K.transpose(-1, -2))[..., :2] / view[..., 2:]
    inside = (pixels > -0.5) & (pixels < rig.size.unsqueeze(-2) - 0.5)
    return inside.all(-1).float().mean(-1)


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_every_view_sees_the_person(family):
    for num_views in (2, 4, 8):
        rig, joints = make(family, num_views, max_truncated=0.2)
        share = share_inside(rig, joints)
        assert share.min() >= 0.79
        assert (share == 1).float().mean() > 0.6
        assert rig.size.shape == (40, num_views, 2)
    rig, joints = make(family, 4, max_truncated=0.0)
    assert (share_inside(rig, joints) == 1).all()
    # The control: with the focal length tripled, many views cut the person off.
    K = rig.cameras.K * torch.tensor([3.0, 3, 1])[:, None]
    long = rig._replace(cameras=rig.cameras._replace(K=K))
    assert (share_inside(long, joints) < 0.79).float().mean() > 0.3


def world_centres(family: str, num_views: int) -> torch.Tensor:
    rig, _ = make(family, num_views)
    return centres(rig.cameras.R, rig.cameras.t)


def test_families_look_like_themselves():
    h36m = world_centres("h36m_ring", 4)
    assert ((h36m[..., 2] > 1200) & (h36m[..., 2] < 1900)).all()
    sides = torch.cdist(h36m, h36m).sort(-1).values.median(1).values.median(0).values
    # The corners of 3.7 x 9.8 m: the distances to the three others.
    assert torch.allclose(sides, torch.tensor([0.0, 3700, 9800, 10500]), atol=500)

    # Moving a camera back from a person too close leaves the wall a little.
    for family, least, most in (("wall", 0.0, 0.1), ("ring", 0.6, 1.0)):
        place = world_centres(family, 5)[..., :2]
        long, thin = torch.linalg.svdvals(place - place.mean(1, keepdim=True)).unbind(-1)
        assert least <= (thin / long).median() < most

    corner = world_centres("corner", 4)[..., :2]
    direction = torch.nn.functional.normalize(corner, dim=-1)
    widest = (direction @ direction.transpose(-1, -2)).flatten(1).amin(1).acos()
    assert widest.max() < math.radians(150) and widest.median() < math.radians(100)

    overhead = world_centres("overhead", 4)
    assert overhead[..., 2].min() > 2000
    steepest = (overhead[..., 2] - 900) / overhead[..., :2].norm(dim=-1)
    assert (steepest.amax(1) > 2).float().mean() > 0.8

    phones, _ = make("two_phones", 2, batch=200)
    portrait = (phones.size[..., 1] > phones.size[..., 0]).float().mean()
    assert 0.6 < portrait < 0.9
    focal, _ = make("random", 4, batch=100)
    ratio = focal.cameras.K[..., 0, 0] / focal.size.amax(-1)
    assert ratio.min() < 0.8 and ratio.max() > 2.2


def test_images_are_upright_and_any_view_can_be_the_reference():
    down, rolled = (make(name, 4)[0].cameras.R[..., 1, 2] for name in ("h36m_ring", "random"))
    assert (down < -0.9).all() and (rolled > -0.9).float().mean() > 0.1
    # The overhead family's top camera turns up at every place in the order.
    top = world_centres("overhead", 4)[..., :2].norm(dim=-1).argmin(1)
    assert set(top.tolist()) == {0, 1, 2, 3}


def test_look_at_puts_the_target_on_the_axis():
    generator = torch.Generator().manual_seed(0)
    centre, target = (1000 * torch.randn(50, 3, generator=generator) for _ in range(2))
    target[0] = centre[0] - torch.tensor([0.0, 0.0, 500.0])  # straight down
    R = look_at(centre, target, torch.zeros(50))
    seen = (R @ (target - centre).unsqueeze(-1)).squeeze(-1)
    assert torch.allclose(seen[:, :2], torch.zeros(50, 2), atol=0.01) and (seen[:, 2] > 0).all()
    assert torch.allclose(R @ R.transpose(-1, -2), torch.eye(3).expand(50, 3, 3), atol=1e-5)
    assert torch.allclose(torch.linalg.det(R), torch.ones(50), atol=1e-5)
    assert R[1:, 0, 2].abs().max() < 1e-5 and (R[1:, 1, 2] <= 0).all()  # level, not upside down
    rolled = look_at(centre, target, torch.full((50,), 0.3))
    assert torch.allclose((rolled @ R.transpose(-1, -2))[:, 1, 0], torch.tensor(0.3).sin())


def same(a: Scene, b: Scene) -> bool:
    flags = []
    tree_map(lambda x, y: flags.append(torch.equal(x.nan_to_num(-9), y.nan_to_num(-9))), a, b)
    return all(flags)


def test_shapes_and_reference_frame():
    scene = generate_batch(CONFIG, 0, 0, 6, 3, 4)
    assert scene.keypoints.xy.shape == (6, 4, 3, 17, 2)
    assert scene.keypoints.covariance.shape == (6, 4, 3, 17, 2, 2)
    assert scene.keypoints.confidence.shape == (6, 4, 3, 17)
    assert scene.K.shape == (6, 4, 3, 3, 3) and scene.joints3d.shape == (6, 4, 17, 3)
    assert scene.family.shape == (6,) and scene.family.dtype == torch.int64
    assert torch.equal(scene.cameras.t[:, 0], torch.zeros(6, 3))
    assert torch.equal(scene.cameras.R[:, 0], torch.eye(3).expand(6, 3, 3))
    numbers = (*scene.keypoints, scene.K, *scene.cameras, scene.joints3d)
    assert {value.dtype for value in numbers} == {torch.float32}
    assert (scene.joints3d[..., 2] > 500).all()  # mm before the reference camera
    assert scene.keypoints.covariance.isfinite().all()
    seen = ~scene.keypoints.xy.isnan()
    assert seen.float().mean() > 0.7


def test_a_sample_depends_on_seed_step_and_index_only():
    scene = generate_batch(CONFIG, 3, 5, 8, 3, 2)
    assert same(take(scene, slice(4, 8)), generate_batch(CONFIG, 3, 5, 4, 3, 2, first=4))
    for seed, step in ((3, 6), (4, 5)):
        assert not same(scene, generate_batch(CONFIG, seed, step, 8, 3, 2))
    assert not torch.allclose(scene.joints3d[0], scene.joints3d[1], atol=1.0)


def test_keypoints_are_projections_of_the_joints():
    """With hardly any noise, K, cameras and joints3d reproduce the keypoints."""
    config = replace(CONFIG, generated__errors={"noise": 1e-5, "missing_rate": 0.0})
    scene = generate_batch(config, 0, 0, 20, 4, 3, exact=True)
    cameras = Cameras(scene.K, scene.cameras.R.unsqueeze(1), scene.cameras.t.unsqueeze(1))
    expected = project(scene.joints3d, cameras)
    seen = ~scene.keypoints.xy.isnan()
    assert seen.float().mean() > 0.9
    assert (scene.keypoints.xy - expected)[seen].abs().max() < 0.5  # px; float32 at 8 m, 5 sigma


def test_families_are_held_out():
    def names(split: str) -> set[str]:
        drawn = generate_batch(CONFIG, 0, 0, 200, 2, split=split).family
        return {FAMILY_NAMES[i] for i in drawn.tolist()}

    assert names("train") == set(CONFIG.generated.families) and names("held_out") == {"wall"}


def test_bad_options_are_named():
    for changes, message in (
        ({"generated__families": ["circle"]}, r"generated\.families: unknown rig family 'circle'"),
        ({"generated__families": ["dome", "wall"]}, "wall is also in generated.families"),
        ({"generated__held_out_families": ["line"]}, "held_out_families: unknown rig family"),
        ({"generated__held_out_families": []}, "held_out_families: no rig family"),
        ({"generated__families": []}, "no rig family"),
        ({"generated__min_views": 7}, "max_views"),
        ({"generated__more_errors": [{"noize": 1}]}, "'generated.errors.noize'.*errors.noise"),
    ):
        with pytest.raises(UserError, match=message):
            for split in ("train", "held_out"):
                generate_batch(replace(CONFIG, **changes), 0, 1, 1, 2, split=split)


def test_batches_take_turns_between_kinds_of_errors(tmp_path):
    (tmp_path / "a.yaml").write_text("noise: 0.05")
    (tmp_path / "b.yaml").write_text("missing_view_rate: 0.0\nmissing_rate: 0.9")
    files = f"generated.more_errors=[{tmp_path / 'a.yaml'}, {tmp_path / 'b.yaml'}]"
    mixed = load(None, ["run.name=test", files])
    noisy = load(None, ["run.name=test", f"generated.errors={tmp_path / 'a.yaml'}"])
    few = load(None, ["run.name=test", f"generated.errors={tmp_path / 'b.yaml'}"])
    for step, alone in enumerate((CONFIG, noisy, few, CONFIG, noisy, few)):
        scenes = [generate_batch(config, 1, step, 3, 2) for config in (mixed, alone)]
        assert same(*scenes)
        assert step % 3 == 0 or not same(scenes[0], generate_batch(CONFIG, 1, step, 3, 2))


def test_number_of_views_is_drawn_per_batch():
    config = replace(CONFIG, generated__min_views=2, generated__max_views=5)
    first, second = ([draw_num_views(config, 0, step) for step in range(100)] for _ in range(2))
    assert set(first) == {2, 3, 4, 5} and first == second
    for num_views in (1, 8):
        assert generate_batch(config, 0, 0, 2, num_views).K.shape[2] == num_views


def test_motion_capture_is_mixed_in(tmp_path):
    path = write_mocap(tmp_path / "mocap.npz")
    config = replace(CONFIG, generated__mocap=path)
    left, right = (H36M17.joints.index(f"{side}_wrist") for side in ("left", "right"))

    def share_wide(share: float) -> float:
        mixed = replace(config, generated__mocap_share=share)
        joints = generate_batch(mixed, 0, 0, 60, 2).joints3d
        span = (joints[..., left, :] - joints[..., right, :]).norm(dim=-1)
        return float((span > 1000).float().mean())

    assert share_wide(1.0) == 1  # everyone stands in the file's T
    assert 0.4 < share_wide(0.5) < 0.9
