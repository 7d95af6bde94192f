"""Single rendered images: determinism, framing, keypoints, visibility, masks, files, loaders."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from test_retarget import write_bvh

pytest.importorskip("anny")
pytest.importorskip("moderngl")

from ptri import config as configs
from ptri.data import transforms
from ptri.data.h36m import SampleKey, cut_view, make_sample, open_split
from ptri.data.loaders import TrainLoader
from ptri.data.shards import Shards
from ptri.errors import UserError
from ptri.people.articulation import ANGLES, INDEX, angles_to_rotations
from ptri.render import layout, occluders, truth
from ptri.render.cameras import Camera, place_camera, sample_lens
from ptri.render.people import make_rng
from ptri.render.poses import KIND_NAMES, MOCAP
from ptri.render.posing import part_rotations, pose, skin
from ptri.render.room import sample_room
from ptri.render.settings import RenderConfig, settings_from
from ptri.render.single import Studio
from ptri.render.stream import Rendered
from ptri.skeleton import COCO17, H36M17

SPEC = importlib.util.spec_from_file_location(
    "benchmark", Path(__file__).parents[1] / "scripts/benchmark.py"
)
benchmark = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(benchmark)

SMALL = RenderConfig(size=96, people=3, faces=2000, motion_blur=0.3)
COCO = {name: i for i, name in enumerate(COCO17.joints)}
H36M = {name: i for i, name in enumerate(H36M17.joints)}


@pytest.fixture(scope="module")
def studio():
    try:
        studio = Studio(SMALL, masks=True)
    except RuntimeError as error:
        pytest.skip(str(error))
    yield studio
    studio.close()


@pytest.fixture(scope="module")
def shots(studio):
    return studio.shoot([(5, 0, i) for i in range(24)])


@pytest.fixture(scope="module")
def standing(studio):
    """A person who stands and faces -y: (person, transforms, joints, COCO's keypoints), m."""
    person, surface = studio._person(5, 0, 0)
    angles = torch.zeros(1, len(ANGLES))
    for side in ("left", "right"):
        angles[0, INDEX[f"{side}_arm_abd"]] = 0.3
    parts = part_rotations(*angles_to_rotations(angles))
    transforms, joints = pose(person.rig, parts, np.array([[0, 0, 1.0]]))
    return person, transforms[0], joints[0], surface.coco(transforms[0])


def camera_from(side: np.ndarray, size: int = 96) -> Camera:
    centre = 4 * np.asarray(side, float) + [0, 0, 1.0]
    forward = -np.asarray(side, float)
    right = np.cross(forward, [0, 0, 1])
    R = np.stack([right, np.cross(forward, right), forward])
    K = np.array([[1.4 * size, 0, size / 2], [0, 1.4 * size, size / 2], [0, 0, 1]])
    return Camera(K, R, -R @ centre)


def test_an_image_depends_on_its_key_only(studio, shots):
    other = Studio(SMALL, masks=True)
    again = other.shoot([(5, 0, 7), (5, 0, 2)])
    other.close()
    for first, second in zip((shots[7], shots[2]), again):
        for a, b in zip(first, second):
            np.testing.assert_array_equal(a, b)
    different = studio.shoot([(6, 0, 7)])[0]
    assert np.abs(different.joints - shots[7].joints).max() > 1


def test_images_are_as_varied_as_asked(shots):
    images = np.stack([shot.image for shot in shots]).astype(float)
    assert images.shape[1:] == (96, 96, 3)
    assert images.mean((1, 2, 3)).std() > 8 and images.std((1, 2, 3)).min() > 8
    assert len({shot.kind for shot in shots}) >= 8
    headings = [np.arctan2(*(shot.joints[13] - shot.joints[12])[:2]) for shot in shots]
    assert np.abs(np.mean(np.exp(1j * np.array(headings)))) < 0.6
    heights = [-(shot.R.T @ shot.t)[2] for shot in shots]
    assert min(heights) > 100 and np.ptp(heights) > 1000  # mm, above the floor


def test_joints_boxes_and_masks_agree(shots):
    for shot in shots:
        pixels = Camera(shot.K, shot.R, shot.t).project(shot.joints)
        inside = (pixels[:, :2] >= 0).all(1) & (pixels[:, :2] <= 95).all(1)
        top, left, bottom, right = shot.box
        assert 0 <= top < bottom <= 96 and 0 <= left < right <= 96
        x, y = pixels[inside, :2].T
        assert np.all((x >= left - 1) & (x <= right) & (y >= top - 1) & (y <= bottom))
        # Pixels have an extent: a joint 0.4 px beyond a border pixel's centre is still in it.
        within = (pixels[:, :2] >= -0.5).all(1) & (pixels[:, :2] <= 95.5).all(1)
        assert not np.any(shot.visible & ~within) and shot.visible.sum() >= 3
        rows, columns = np.nonzero(shot.mask)
        assert len(rows) > 20
        assert rows.min() >= top and rows.max() < bottom
        assert columns.min() >= left and columns.max() < right
        # What is seen of Human3.6M's joints lies on or beside the person's pixels.
        near = [
            shot.mask[max(0, int(v) - 3) : int(v) + 5, max(0, int(u) - 3) : int(u) + 5].any()
            for u, v, _ in pixels[shot.visible]
        ]
        assert np.mean(near) > 0.9


def test_cameras_frame_people_as_asked():
    rng = make_rng(1)
    config = RenderConfig(size=200, truncated=0.0, on_side=0.0)
    points = rng.normal(0, [0.2, 0.15, 0.4], (300, 3)) + np.array([0, 0, 0.9])
    points = np.clip(points, [-0.5, -0.4, 0], [0.5, 0.4, 1.8])
    joints = points[:17]
    shares, middles, heights, distances = [], [], [], []
    for _ in range(60):
        K = sample_lens(rng, config)
        camera = place_camera(rng, config, K, points, joints)
        np.testing.assert_allclose(camera.R @ camera.R.T, np.eye(3), atol=1e-9)
        pixels = camera.project(points)
        low, high = pixels[:, :2].min(0), pixels[:, :2].max(0)
        shares.append((high - low).max() / 200)
        middles.append((low + high) / 2)
        heights.append(camera.centre[2])
        distances.append(pixels[:, 2].mean())
    # Four steps of the iteration leave a few per cent where the camera is near.
    assert min(shares) > 0.55 and max(shares) < 1.05
    assert np.abs(np.array(middles) - 99.5).max() < 60
    assert min(heights) > 0.1 and max(heights) > 2.5
    assert min(distances) < 2.5 and max(distances) > 8
    cut = RenderConfig(size=200, truncated=1.0)
    outside = []
    for _ in range(30):
        camera = place_camera(rng, cut, sample_lens(rng, cut), points, joints)
        pixels = camera.project(points)[:, :2]
        outside.append(((pixels < 0) | (pixels > 199)).any(1).mean())
    assert np.mean(outside) > 0.15 and np.mean(np.array(outside) > 0.05) > 0.7


def test_coco_keypoints_lie_where_annotators_put_them(standing):
    _, _, joints, coco = standing
    for name in ("shoulder", "elbow", "wrist", "hip", "knee"):
        for side in ("left", "right"):
            gap = coco[COCO[f"{side}_{name}"]] - joints[H36M[f"{side}_{name}"]]
            assert np.linalg.norm(gap) < 0.05, (side, name, gap)  # measured: up to 0.03 m
    for side in ("left", "right"):
        assert np.linalg.norm(coco[COCO[f"{side}_ankle"]] - joints[H36M[f"{side}_foot"]]) < 0.05
    for name in ("eye", "ear", "shoulder", "hip"):  # x is the person's left
        assert coco[COCO[f"left_{name}"], 0] > coco[COCO[f"right_{name}"], 0]
    nose, ear = coco[COCO["nose"]], coco[COCO["left_ear"]]
    assert nose[1] < coco[COCO["left_eye"], 1] < ear[1]  # faces -y
    assert nose[2] < coco[COCO["left_eye"], 2] < joints[H36M["head"], 2]


def test_visibility_comes_from_depth(studio, standing):
    person, transforms, joints, coco = standing
    renderer = studio._renderer
    renderer.set_person(person.dressed)
    points, normals = skin(transforms, *person.skin_data)
    shift = -np.array([*joints[6, :2], points[:, 2].min()])
    room = sample_room(make_rng(0), np.array([[4.0, 0, 1]]), RenderConfig(clutter=0))
    seen = {}
    for name, side in (("front", [0, -1, 0]), ("back", [0, 1, 0]), ("left", [1, 0, 0])):
        camera = camera_from(side)
        renderer.pose({0: (points + shift, normals)}, room)
        renderer.draw(*camera)
        depth = renderer.depth()
        renderer.end_pose()
        seen[name] = truth.find_visible(coco + shift, truth.radii("coco17"), camera, depth)
        if name == "front":
            body = truth.find_visible(joints + shift, truth.radii("h36m17"), camera, depth)
            assert body.all()
            near = np.full_like(depth, 1.0)  # a wall before the camera hides everything
            assert not truth.find_visible(joints, truth.radii("h36m17"), camera, near).any()
    face = [COCO["nose"], COCO["left_eye"], COCO["right_eye"]]
    assert seen["front"][face].all() and not seen["back"][face].any()
    assert seen["left"][COCO["left_ear"]] and not seen["left"][COCO["right_ear"]]
    assert seen["left"][COCO["left_shoulder"]] and not seen["left"][COCO["right_shoulder"]]


def test_occluders_hide_a_part_of_the_person(studio, standing):
    person, transforms, joints, _ = standing
    renderer = studio._renderer
    renderer.set_person(person.dressed)
    points, normals = skin(transforms, *person.skin_data)
    shift = -np.array([*joints[6, :2], points[:, 2].min()])
    joints = joints + shift
    camera = camera_from([0, -1, 0])
    room = sample_room(make_rng(0), np.array([[4.0, 0, 1]]), RenderConfig(clutter=0))
    hidden = []
    for seed in range(25):
        scene = occluders.add_occluder(make_rng(seed), room, camera, joints)
        assert len(scene.mesh) > len(room.mesh) and len(scene.colours) == len(room.colours) + 1
        renderer.pose({0: (points + shift, normals)}, scene)
        renderer.draw(*camera)
        depth = renderer.depth()
        renderer.end_pose()
        visible = truth.find_visible(joints, truth.radii("h36m17"), camera, depth)
        hidden.append(1 - visible.mean())
        held = occluders.add_held(make_rng(seed), room, joints)
        added = held.mesh[len(room.mesh) :, :3]
        wrists = joints[[10, 15]]
        gap = np.maximum(added.min(0) - wrists, wrists - added.max(0)).clip(0)
        assert np.linalg.norm(gap, axis=1).min() < 0.25  # m from a wrist
    assert 0.05 < np.mean(hidden) < 0.6 and max(hidden) > 0.3


def test_single_images_are_files_the_reader_takes(tmp_path):
    settings = settings_from(
        {
            "mode": "single", "out": str(tmp_path / "set"), "subjects": "S1,S9", "images": 70,
            "size": 80, "faces": 2000, "people": 2, "lenses": 3, "masks": "true",
        }
    )  # fmt: skip
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
    assert len(data) == 70
    for item in (0, 33, 69):
        sample, row = data[item], data.row(item)
        camera = known["camera"][known["row"] == row][0]
        K = sample.cameras.K[0].numpy()
        original = labels.K[1, camera]
        centred = (known["h36m17"][known["row"] == row][0] - original[:2, 2]) / original[0, 0]
        again = centred * K[0, 0] + K[:2, 2]
        np.testing.assert_allclose(sample.joints2d[0].numpy(), again, atol=1.5)
        action = labels.action_names[labels.action[row]]
        path = layout.image_path(
            Path(settings.out), "S9", action, labels.camera_names[camera], labels.frame[row]
        )
        assert path.exists()
        mask = str(path).replace("imageSequence-undistorted", "masks").replace(".jpg", ".png")
        assert Path(mask).exists()
    assert len(labels.action_names) == len(KIND_NAMES)


def test_shards_are_read_back(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    settings = settings_from(
        {
            "mode": "single", "out": str(tmp_path), "subjects": "S1", "images": 6, "size": 64,
            "faces": 2000, "people": 2, "lenses": 2, "shard_size": 4,
        }
    )  # fmt: skip
    assert layout.render_dataset(settings, progress=False) is None
    names = sorted(str(path) for path in tmp_path.glob("*.tar"))
    assert len(names) == 2
    samples = list(webdataset.WebDataset(names, shardshuffle=False))
    assert len(samples) == 6
    first = json.loads(samples[0]["json"])
    assert np.array(first["coco17"]).shape == (17, 3) and samples[0]["jpg"][:2] == b"\xff\xd8"

    made = configs.load(None, [
        "run.name=x", "data.kind=shards", f"data.root={tmp_path}", "data.train_subjects=[1]",
        "data.test_subjects=[1]", "data.image_size=64", "data.workers=0", "augment.flip=0.5",
    ])  # fmt: skip
    data, test = Shards(made, "train"), Shards(made, "test")
    assert len(data) == len(test) == 6
    whole = list(TrainLoader(data, 2, seed=1).epoch(1))
    late = list(TrainLoader(Shards(made, "train"), 2, seed=1).epoch(1, start_step=2))
    assert len(whole) == 3 and torch.equal(whole[2].images, late[0].images)
    # The same sample as the tar's own reader gives: the joints lie in the crop of the box.
    sample = test[0]
    crop = make_sample(
        [cut_view(
            lambda reduction: transforms.decode_jpeg(samples[0]["jpg"], "x", reduction),
            tuple(np.array(first[name], float) for name in ("K", "R", "t")),
            np.array(first["box"]), np.array(first["h36m17"], float), made.data, None, None,
        )],
        np.array(first["h36m17"], float), False, 64, (1, 0, 0),
    )  # fmt: skip
    assert torch.equal(sample.images, crop.images) and torch.equal(sample.joints2d, crop.joints2d)
    assert int(sample.subject) == 1 and sample.visible.any()
    with pytest.raises(UserError, match=r"S9-\*\.tar"):
        Shards(configs.replace(made, data__test_subjects=[9]), "test")
    whole_file = Path(names[1]).read_bytes()
    Path(names[1]).write_bytes(whole_file[: len(whole_file) // 2])
    with pytest.raises(UserError, match=r"S1-.*tar.*make"):
        [Shards(made, "test")[i] for i in range(6)]


def fly_config(**changes):
    values = {
        "run__name": "x", "data__kind": "rendered", "data__image_size": 64, "data__workers": 0,
        "render__people": 2, "render__faces": 2000, "render__pass_images": 12,
        "render__test_images": 4,
    }  # fmt: skip
    return configs.replace(configs.load(None, ["run.name=x"]), **values, **changes)


def test_training_on_the_fly_is_deterministic_and_resumes(studio):
    data = Rendered(fly_config(), "train")
    whole = list(TrainLoader(data, 4, seed=1).epoch(2))
    late = list(TrainLoader(Rendered(fly_config(), "train"), 4, seed=1).epoch(2, start_step=1))
    assert len(whole) == 3 and len(late) == 2
    for first, second in zip(whole[1:], late):
        np.testing.assert_array_equal(first.images, second.images)
        np.testing.assert_array_equal(first.joints2d, second.joints2d)
    batch = whole[0]
    assert batch.images.shape == (4, 1, 3, 64, 64) and batch.visible.shape == (4, 1, 17)
    pixels = batch.joints3d @ batch.cameras.K[:, 0].transpose(-1, -2)
    np.testing.assert_allclose(pixels[..., :2] / pixels[..., 2:], batch.joints2d[:, 0], atol=2e-2)
    first, second = data[SampleKey(3, 0)], data[SampleKey(3, 1)]  # every pass has new images
    assert (first.joints3d - second.joints3d).abs().max() > 1


def test_test_images_on_the_fly_stay_the_same(studio):
    first, second = (Rendered(fly_config(), "test") for _ in range(2))
    assert len(first) == 4
    for item in range(4):
        np.testing.assert_array_equal(first[item].images, second[item].images)
    boxes = np.stack([shot.box for shot in first._shots])
    whole = [shot.cropped for shot in first._shots]
    assert sum(whole) >= 2
    assert ((boxes[:, 2:] - boxes[:, :2]).max(1) > 61)[whole].all()  # people fill their images


def test_missing_folders_are_reported():
    with pytest.raises(UserError, match=r"train2d\.py only"):
        open_split(fly_config(), "train")
    with pytest.raises(UserError, match="not a folder"):
        Rendered(fly_config(render__backgrounds="/no/such"), "train")
    with pytest.raises(UserError, match=r"render\.garments: /no/such: not a folder"):
        Rendered(fly_config(render__garments="/no/such"), "train")
    with pytest.raises(UserError, match="cannot be read"):
        Rendered(fly_config(render__mocap=["/no/such.bvh"]), "train")


def test_files_without_held_out_trials_are_for_training_only(studio, tmp_path):
    write_bvh(tmp_path / "a.bvh", [{}] * 2)
    config = fly_config(render__mocap=[str(tmp_path)], render__mocap_share=1.0)
    kinds = {shot.kind for shot in Rendered(config, "test")._shots}
    assert len(kinds) > 1 and MOCAP not in kinds
    assert Rendered(config, "train").render.mocap == [str(tmp_path)]


def test_the_speed_benchmark_counts_its_images(studio, tmp_path, capsys):
    (tmp_path / "small.yaml").write_text("render: {people: 2, faces: 2000}\n")
    config = ["--config", str(tmp_path / "small.yaml")]
    assert benchmark.main(["render", "--images", "2", *config, "--set", "size=64"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("2 single images of 64 px") and "processor time" in printed
    for arguments, message in (
        (["--config", "/no/such.yaml"], "No such file"),
        (["--set", "size"], "key=value"),
        (["--set", "sise=64"], "sise: unknown key"),
        (["--images", "0"], "at least 1"),
    ):
        assert benchmark.main(["render", *arguments]) == 2
        assert message in capsys.readouterr().err
