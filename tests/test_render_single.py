"""Single rendered images: determinism, framing, keypoints, visibility, masks, files, loaders."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest
from benchmark.commands import main as benchmark
from render_fixture import empty_room, level_camera, person, pose_of, renderer, take
from test_retarget import write_bvh
from torch import equal

from ptri import config as configs
from ptri.data import transforms
from ptri.data.loaders import EvaluationLoader, TrainLoader
from ptri.data.multiview import SampleKey, cut_view, make_sample, open_split
from ptri.data.shards import Shards
from ptri.errors import UserError
from ptri.render import truth
from ptri.render.people.person import make_rng
from ptri.render.people.poses import KIND_NAMES, MOCAP
from ptri.render.people.posing import coco_keypoints
from ptri.render.settings import RenderConfig, settings_from
from ptri.render.single import Shot, Studio
from ptri.render.stage import occluders
from ptri.render.stage.cameras import Camera, place_camera, sample_lens
from ptri.render.stream import Rendered
from ptri.render.write import layout
from ptri.skeleton import COCO17, H36M17

SMALL = RenderConfig(size=96, people=3, faces=2000, motion_blur=0.3)
SINGLE = {"mode": "single", "faces": 2000, "people": 2}
COCO = {name: i for i, name in enumerate(COCO17.joints)}
H36M = {name: i for i, name in enumerate(H36M17.joints)}


@functools.cache
def studio() -> Studio:
    renderer()  # skips without EGL
    return Studio(SMALL, masks=True)


@functools.cache
def shots() -> list[Shot]:
    return studio().shoot([(5, 0, i) for i in range(24)])


@functools.cache
def standing() -> tuple[np.ndarray, ...]:
    """Points, normals, joints and COCO's keypoints, m, of a person who stands and faces -y."""
    transforms, joints = pose_of(person(), left_arm_abd=17, right_arm_abd=17)
    coco = coco_keypoints(person().rig, transforms[None])[0]
    points, normals = person().skin(transforms)
    shift = -np.array([*joints[6, :2], points[:, 2].min()])
    return points + shift, normals, joints + shift, coco + shift


def test_an_image_depends_on_its_key_only():
    other = Studio(SMALL, masks=True)
    again = other.shoot([(5, 0, 7), (5, 0, 2)])
    other.close()
    for n, second in zip((7, 2), again):
        for a, b in zip(shots()[n], second):
            np.testing.assert_array_equal(a, b)
    different = studio().shoot([(6, 0, 7)])[0]
    assert np.abs(different.joints - shots()[7].joints).max() > 1


def test_images_are_as_varied_as_asked():
    images = np.stack([shot.image for shot in shots()]).astype(float)
    assert images.shape[1:] == (96, 96, 3)
    assert images.mean((1, 2, 3)).std() > 8 and images.std((1, 2, 3)).min() > 8
    assert len({shot.kind for shot in shots()}) >= 8
    headings = [np.arctan2(*(shot.joints[13] - shot.joints[12])[:2]) for shot in shots()]
    assert np.abs(np.mean(np.exp(1j * np.array(headings)))) < 0.6
    heights = [-(shot.R.T @ shot.t)[2] for shot in shots()]
    assert min(heights) > 100 and np.ptp(heights) > 1000  # mm, above the floor


def test_joints_boxes_and_masks_agree():
    for shot in shots():
        pixels = Camera(shot.K, shot.R, shot.t).project(shot.joints)
        inside = (pixels[:, :2] >= 0).all(1) & (pixels[:, :2] <= 95).all(1)
        top, left, bottom, right = shot.boxes
        assert 0 <= top < bottom <= 96 and 0 <= left < right <= 96
        assert (pixels[inside, :2] >= [left - 1, top - 1]).all()
        assert (pixels[inside, :2] <= [right, bottom]).all()
        # Pixels have an extent: a joint 0.4 px beyond a border pixel's centre is still in it.
        within = (pixels[:, :2] >= -0.5).all(1) & (pixels[:, :2] <= 95.5).all(1)
        assert not np.any(shot.visible & ~within) and shot.visible.sum() >= 3
        num_pixels = np.count_nonzero(shot.mask)
        assert 20 < num_pixels == np.count_nonzero(shot.mask[top:bottom, left:right])
        # What is seen of Human3.6M's joints lies on or beside the person's pixels.
        near = [
            shot.mask[max(0, int(v) - 3) : int(v) + 5, max(0, int(u) - 3) : int(u) + 5].any()
            for u, v, _ in pixels[shot.visible]
        ]
        assert np.mean(near) > 0.9


def test_cameras_frame_people_as_asked():
    rng = make_rng(1)
    points = rng.normal(0, [0.2, 0.15, 0.4], (300, 3)) + np.array([0, 0, 0.9])
    points = np.clip(points, [-0.5, -0.4, 0], [0.5, 0.4, 1.8])

    def place(num, **options):
        """Rotations (num, 3, 3), centres (num, 3) m, pixels and depths of the points."""
        config = RenderConfig(size=200, **options)
        cameras = [
            place_camera(rng, config, sample_lens(rng, config), points, points[:17])
            for _ in range(num)
        ]
        rows = [(camera.R, camera.centre, camera.project(points)) for camera in cameras]
        return map(np.array, zip(*rows))

    R, centre, placed = place(60, truncated=0.0, on_side=0.0)
    np.testing.assert_allclose(R @ R.mT, np.tile(np.eye(3), (60, 1, 1)), atol=1e-9)
    low, high = placed[..., :2].min(1), placed[..., :2].max(1)
    # Four steps of the iteration leave a few per cent where the camera is near.
    share, distance = (high - low).max(1) / 200, placed[..., 2].mean(1)
    assert share.min() > 0.55 and share.max() < 1.05
    assert np.abs((low + high) / 2 - 99.5).max() < 60
    assert centre[:, 2].min() > 0.1 and centre[:, 2].max() > 2.5
    assert distance.min() < 2.5 and distance.max() > 8
    *_, placed = place(30, truncated=1.0)
    outside = ((placed[..., :2] < 0) | (placed[..., :2] > 199)).any(2).mean(1)
    assert np.mean(outside) > 0.15 and np.mean(outside > 0.05) > 0.7


def test_coco_keypoints_lie_where_annotators_put_them():
    _, _, joints, coco = standing()
    for name in ("shoulder", "elbow", "wrist", "hip", "knee", "ankle"):
        for side in ("left", "right"):
            ours = H36M[f"{side}_{name}".replace("ankle", "foot")]
            gap = coco[COCO[f"{side}_{name}"]] - joints[ours]
            assert np.linalg.norm(gap) < 0.05, (side, name, gap)  # measured: up to 0.03 m
    for name in ("eye", "ear", "shoulder", "hip"):  # x is the person's left
        assert coco[COCO[f"left_{name}"], 0] > coco[COCO[f"right_{name}"], 0]
    nose, ear = coco[COCO["nose"]], coco[COCO["left_ear"]]
    assert nose[1] < coco[COCO["left_eye"], 1] < ear[1]  # faces -y
    assert nose[2] < coco[COCO["left_eye"], 2] < joints[H36M["head"], 2]


def test_visibility_comes_from_depth():
    points, normals, joints, coco = standing()
    seen = {}
    for name, azimuth in (("front", -np.pi / 2), ("back", np.pi / 2), ("left", 0.0)):
        camera = level_camera(azimuth)
        depth = take(camera, empty_room(), (person().dressed, points, normals)).depth
        label = truth.label(points, joints, coco, camera, depth)
        seen[name] = label.coco_visible
        if name == "front":
            assert label.visible.all()
            wall = np.ones_like(depth)  # before the camera: hides everything
            assert not truth.label(points, joints, coco, camera, wall).visible.any()
    face = [COCO["nose"], COCO["left_eye"], COCO["right_eye"]]
    assert seen["front"][face].all() and not seen["back"][face].any()
    assert seen["left"][COCO["left_ear"]] and not seen["left"][COCO["right_ear"]]
    assert seen["left"][COCO["left_shoulder"]] and not seen["left"][COCO["right_shoulder"]]


def test_occluders_hide_a_part_of_the_person():
    points, normals, joints, coco = standing()
    camera, room = level_camera(-np.pi / 2), empty_room()
    hidden = []
    for seed in range(25):
        blocked = occluders.add_occluder(make_rng(seed), room, camera, joints)
        assert len(blocked.mesh) > len(room.mesh)
        assert len(blocked.colours) == len(room.colours) + 1
        depth = take(camera, blocked, (person().dressed, points, normals)).depth
        hidden.append(1 - truth.label(points, joints, coco, camera, depth).visible.mean())
        held = occluders.add_held(make_rng(seed), room, joints)
        added = held.mesh[len(room.mesh) :, :3]
        wrists = joints[[10, 15]]
        gap = np.maximum(added.min(0) - wrists, wrists - added.max(0)).clip(0)
        assert np.linalg.norm(gap, axis=1).min() < 0.25  # m from a wrist
    assert 0.05 < np.mean(hidden) < 0.6 and max(hidden) > 0.3


def test_single_images_are_files_the_reader_takes(tmp_path):
    wanted = {"subjects": "S1,S9", "images": 70, "size": 80, "lenses": 3, "masks": "true"}
    settings = settings_from(SINGLE | wanted | {"out": str(tmp_path / "set")})
    labels = layout.render_dataset(settings, progress=False)
    assert len(labels.frame) == 140 and labels.K.shape == (2, 3, 3, 3)
    assert ((labels.boxes != 0).any(-1).sum(1) == 1).all()  # each row is one camera's
    with np.load(tmp_path / "set" / "extra" / layout.TRUTH_NAME) as extra:
        known = {name: extra[name] for name in extra.files}
    assert known["h36m17"].shape == (140, 17, 2) and known["coco17_visible"].dtype == bool
    config = configs.load(None, ["run.name=x", f"data.root={settings.out}", "data.image_size=64"])
    config = configs.replace(config, data__train_subjects=[1], data__test_subjects=[9])
    assert len(open_split(config, "train", single_view=True)) == 70
    data = open_split(config, "test", single_view=True)
    for item in (0, 33, 69):
        sample, row = data[item], data.row(item)
        (place,) = np.flatnonzero(known["row"] == row)
        camera, K = known["camera"][place], sample.cameras.K[0].numpy()
        original = labels.K[1, camera]
        centred = (known["h36m17"][place] - original[:2, 2]) / original[0, 0]
        again = centred * K[0, 0] + K[:2, 2]
        np.testing.assert_allclose(sample.joints2d[0].numpy(), again, atol=1.5)
        path = str(data.index.image_path(row, camera))
        mask = path.replace("imageSequence-undistorted", "masks").replace(".jpg", ".png")
        assert Path(mask).exists()
    assert len(labels.action_names) == len(KIND_NAMES)


def test_shards_are_read_back(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    wanted = {"subjects": "S1", "images": 6, "size": 64, "lenses": 2, "shard_size": 4}
    settings = settings_from(SINGLE | wanted | {"out": str(tmp_path)})
    assert layout.render_dataset(settings, progress=False) is None
    names = sorted(str(path) for path in tmp_path.glob("*.tar"))
    assert len(names) == 2
    samples = list(webdataset.WebDataset(names, shardshuffle=False))
    assert len(samples) == 6
    first = json.loads(samples[0]["json"])
    assert np.array(first["coco17"]).shape == (17, 3) and samples[0]["jpg"][:2] == b"\xff\xd8"

    given = {"root": str(tmp_path), "kind": "shards", "image_size": 64, "workers": 0}
    given |= {"train_subjects": [1], "test_subjects": [1]}
    made = configs.from_dicts([("", {"run": {"name": "x"}, "data": given})])
    data, test = Shards(made, "train"), Shards(made, "test")
    assert len(data) == len(test) == 6
    (batch,) = TrainLoader(data, 2, seed=1).between(5, 6)
    alone = Shards(made, "train")[SampleKey(int(batch.frame[0]), 1)]
    assert equal(batch.images[0], alone.images)
    # The same sample as the tar's own reader gives: the joints lie in the crop of the box.
    sample = test[0]
    joints = np.array(first["h36m17"], float)
    camera = tuple(np.array(first[name], float) for name in ("K", "R", "t"))
    read = functools.partial(transforms.decode_image, samples[0]["jpg"], "x")
    view = cut_view(read, camera, np.array(first["box"]), joints, made.data, None, None)
    crop = make_sample([view], joints, False, 64, (1, 0, 0))
    assert equal(sample.images, crop.images) and equal(sample.joints2d, crop.joints2d)
    assert int(sample.subject) == 1 and sample.visible.any()
    with pytest.raises(UserError, match=r"S9-\*\.tar"):
        Shards(configs.replace(made, data__test_subjects=[9]), "test")
    whole = Path(names[1]).read_bytes()
    Path(names[1]).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"S1-.*tar.*make"):
        [Shards(made, "test")[i] for i in range(6)]


def fly_config(**render):
    small = {"people": 2, "faces": 2000, "pass_images": 12, "test_images": 4} | render
    given = {"run": {"name": "x"}, "render": small}
    given["data"] = {"kind": "rendered", "image_size": 64, "workers": 0}
    return configs.from_dicts([("", given)])


def test_images_on_the_fly_depend_on_their_key_only():
    data, other = (Rendered(fly_config(), "train") for _ in range(2))
    (batch,) = TrainLoader(data, 4, seed=1).between(7, 8)  # of the third pass
    assert batch.images.shape == (4, 1, 3, 64, 64) and batch.visible.shape == (4, 1, 17)
    for n, index in enumerate(batch.frame.tolist()):
        alone = other[SampleKey(index, 2)]
        assert equal(batch.images[n], alone.images) and equal(batch.joints2d[n], alone.joints2d)
    pixels = batch.joints3d @ batch.cameras.K[:, 0].mT
    np.testing.assert_allclose(pixels[..., :2] / pixels[..., 2:], batch.joints2d[:, 0], atol=2e-2)
    first, second = data[SampleKey(3, 0)], data[SampleKey(3, 1)]  # every pass has new images
    assert (first.joints3d - second.joints3d).abs().max() > 1


def test_test_images_on_the_fly_stay_the_same():
    first, second = (Rendered(fly_config(), "test") for _ in range(2))
    assert len(first) == 4
    for item in range(4):
        np.testing.assert_array_equal(first[item].images, second[item].images)
    assert sum(len(batch.images) for batch in EvaluationLoader(first, 3)) == 4
    whole = np.array([shot.boxes for shot in first._shots if shot.cropped])
    # People fill their images.
    assert len(whole) >= 2 and ((whole[:, 2:] - whole[:, :2]).max(1) > 61).all()


def test_missing_folders_are_reported():
    with pytest.raises(UserError, match=r"train2d\.py only"):
        open_split(fly_config(), "train")
    for what, message in (("backgrounds", "not a folder"), ("garments", "garments: /no/such: not")):
        with pytest.raises(UserError, match=message):
            Rendered(fly_config(**{what: "/no/such"}), "train")
    with pytest.raises(UserError, match="cannot be read"):
        Rendered(fly_config(mocap=["/no/such.bvh"]), "train")


def test_files_without_held_out_trials_are_for_training_only(tmp_path):
    write_bvh(tmp_path / "a.bvh", [{}] * 2)
    config = fly_config(mocap=[str(tmp_path)], mocap_share=1.0)
    kinds = {shot.kind for shot in Rendered(config, "test")._shots}
    assert len(kinds) > 1 and MOCAP not in kinds
    assert Rendered(config, "train").render.mocap == (str(tmp_path),)


def test_the_speed_benchmark_counts_its_images(tmp_path, capsys):
    (tmp_path / "small.yaml").write_text("render: {people: 2, faces: 2000}\n")
    config = ["--config", str(tmp_path / "small.yaml")]
    assert benchmark(["render", "--images", "2", *config, "--set", "size=64"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("2 single images of 64 px") and "processor time" in printed
    assert benchmark(["render", "--set", "size"]) == 2
    assert "key=value" in capsys.readouterr().err
