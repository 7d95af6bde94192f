"""Generated scenes: seeds, splits, frames of reference."""

import pytest
import torch

from ptri.config import Config, RunConfig, load, replace
from ptri.errors import UserError
from ptri.geometry.cameras import project
from ptri.people.rigs import FAMILY_NAMES
from ptri.people.scenes import Scene, draw_num_views, generate_batch
from ptri.skeleton import H36M17
from ptri.structures import Cameras

CONFIG = Config(run=RunConfig(name="test"))


def leaves(value) -> list[torch.Tensor]:
    return (
        [value] if isinstance(value, torch.Tensor) else [t for item in value for t in leaves(item)]
    )


def same(a: Scene, b: Scene) -> bool:
    return all(
        torch.equal(x.nan_to_num(-9), y.nan_to_num(-9)) for x, y in zip(leaves(a), leaves(b))
    )


def rows(scene: Scene, chosen: slice):
    def take(value):
        if isinstance(value, torch.Tensor):
            return value[chosen]
        return type(value)(*(take(item) for item in value))

    return take(scene)


def test_shapes_and_reference_frame():
    scene = generate_batch(CONFIG, 0, 0, 6, 3, 4)
    assert scene.keypoints.xy.shape == (6, 4, 3, 17, 2)
    assert scene.keypoints.covariance.shape == (6, 4, 3, 17, 2, 2)
    assert scene.keypoints.confidence.shape == (6, 4, 3, 17)
    assert scene.K.shape == (6, 4, 3, 3, 3) and scene.joints3d.shape == (6, 4, 17, 3)
    assert scene.family.shape == (6,) and scene.family.dtype == torch.int64
    assert torch.equal(scene.cameras.t[:, 0], torch.zeros(6, 3))
    assert torch.equal(scene.cameras.R[:, 0], torch.eye(3).expand(6, 3, 3))
    assert all(t.dtype == torch.float32 for t in leaves(scene)[:-1])
    assert (scene.joints3d[..., 2] > 500).all()  # mm before the reference camera
    assert scene.keypoints.covariance.isfinite().all()
    seen = ~scene.keypoints.xy.isnan()
    assert seen.float().mean() > 0.7


def test_a_sample_depends_on_seed_step_and_index_only():
    whole = generate_batch(CONFIG, 3, 5, 8, 3, 2)
    assert same(whole, generate_batch(CONFIG, 3, 5, 8, 3, 2))
    assert same(rows(whole, slice(4, 8)), generate_batch(CONFIG, 3, 5, 4, 3, 2, first=4))
    for seed, step in ((3, 6), (4, 5)):
        assert not same(whole, generate_batch(CONFIG, seed, step, 8, 3, 2))
    first, second = rows(whole, slice(0, 1)), rows(whole, slice(1, 2))
    assert not torch.allclose(first.joints3d, second.joints3d, atol=1.0)


def test_keypoints_are_projections_of_the_joints():
    """With hardly any noise, K, cameras and joints3d reproduce the keypoints."""
    config = replace(CONFIG, generated__errors={"noise": 1e-5, "missing_rate": 0.0})
    scene = generate_batch(config, 0, 0, 20, 4, 3, exact=True)
    cameras = Cameras(
        scene.K, scene.cameras.R.unsqueeze(1).expand(-1, 3, -1, -1, -1), scene.cameras.t[:, None]
    )
    expected = project(scene.joints3d, cameras)
    seen = ~scene.keypoints.xy.isnan()
    assert seen.float().mean() > 0.9
    assert (scene.keypoints.xy - expected)[seen].abs().max() < 0.5  # px; float32 at 8 m, 5 sigma


def test_families_are_held_out():
    train = generate_batch(CONFIG, 0, 0, 200, 2)
    names = {FAMILY_NAMES[i] for i in train.family.tolist()}
    assert names == set(CONFIG.generated.families)
    held_out = generate_batch(CONFIG, 0, 0, 20, 2, split="held_out")
    assert {FAMILY_NAMES[i] for i in held_out.family.tolist()} == {"wall"}
    one = replace(CONFIG, generated__families=["dome"], generated__held_out_families=[])
    assert set(generate_batch(one, 0, 0, 9, 2).family.tolist()) == {FAMILY_NAMES.index("dome")}
    with pytest.raises(UserError, match="held_out_families: no rig family"):
        generate_batch(one, 0, 0, 2, 2, split="held_out")


def test_bad_options_are_named():
    for changes, message in (
        ({"generated__families": ["dome", "wall"]}, "wall is also in generated.families"),
        ({"generated__families": ["circle"]}, "unknown rig family 'circle'"),
        ({"generated__held_out_families": ["line"]}, "held_out_families: unknown rig family"),
        ({"generated__min_views": 7}, "max_views"),
        ({"generated__mocap": "none.npz"}, "no such file: none.npz"),
    ):
        with pytest.raises(UserError, match=message):
            generate_batch(replace(CONFIG, **changes), 0, 0, 1, 2)


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


def test_files_of_errors_that_cannot_be_used_are_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.yaml: no such configuration file"):
        load(None, ["run.name=test", "generated.more_errors=[none.yaml]"])
    for values, message in (
        ({"noize": 0.05}, "unknown key 'generated.errors.noize'.*generated.errors.noise"),
        ({"noise": -1}, "generated.errors.noise: -1.0 is out of range"),
    ):
        with pytest.raises(UserError, match=message):
            generate_batch(replace(CONFIG, generated__more_errors=[values]), 0, 1, 1, 2)


def test_number_of_views_is_drawn_per_batch():
    config = replace(CONFIG, generated__min_views=2, generated__max_views=5)
    drawn = [draw_num_views(config, 0, step) for step in range(100)]
    assert set(drawn) == {2, 3, 4, 5}
    assert drawn == [draw_num_views(config, 0, step) for step in range(100)]
    for num_views in (1, 8):
        assert generate_batch(config, 0, 0, 2, num_views).K.shape[2] == num_views


def test_motion_capture_is_mixed_in(tmp_path):
    from test_bodies import write_mocap

    path = write_mocap(tmp_path / "mocap.npz")
    config = replace(CONFIG, generated__mocap=path, generated__mocap_share=1.0)
    scene = generate_batch(config, 0, 0, 10, 2, 3)
    joints = scene.joints3d
    left, right = (H36M17.joints.index(f"{side}_wrist") for side in ("left", "right"))
    span = (joints[..., left, :] - joints[..., right, :]).norm(dim=-1)
    assert (span > 1000).all()  # everyone stands in the file's T
    mixed = generate_batch(replace(config, generated__mocap_share=0.5), 0, 0, 60, 2).joints3d
    wide = (mixed[..., left, :] - mixed[..., right, :]).norm(dim=-1) > 1000
    assert 0.4 < wide.float().mean() < 0.9
