"""Generated scenes: seeds, splits, frames of reference."""

import pytest
import torch

from ptri.config import Config, RunConfig, load, replace
from ptri.errors import UserError
from ptri.geometry.cameras import project
from ptri.people.rigs import FAMILY_NAMES
from ptri.people.scenes import Scene, draw_num_views, generate_batch
from ptri.skeleton import H36M17
from ptri.structures import Cameras, take, tree_map

CONFIG = Config(run=RunConfig(name="test"))


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
    none = replace(CONFIG, generated__held_out_families=[])
    with pytest.raises(UserError, match="held_out_families: no rig family"):
        generate_batch(none, 0, 0, 2, 2, split="held_out")


def test_bad_options_are_named():
    for changes, message in (
        ({"generated__families": ["dome", "wall"]}, "wall is also in generated.families"),
        ({"generated__held_out_families": ["line"]}, "held_out_families: unknown rig family"),
        ({"generated__min_views": 7}, "max_views"),
        ({"generated__more_errors": [{"noize": 1}]}, "'generated.errors.noize'.*errors.noise"),
    ):
        with pytest.raises(UserError, match=message):
            generate_batch(replace(CONFIG, **changes), 0, 1, 1, 2)


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
    from test_bodies import write_mocap

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
