"""Motion capture: files of joints and BVH files, and that limbs point where they should."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from test_bodies import JOINT, bone_lengths, draws, rest_pose

from ptri.errors import UserError
from ptri.people.articulation import PARTS_AND_ROOT, load_bones
from ptri.people.bodies import sample_bone_lengths
from ptri.people.bvh import read_bvh
from ptri.people.mocap import load_mocap, sample_mocap
from ptri.people.retarget import load_part_motion, retarget
from ptri.render.people.poses import MOCAP, sample_poses
from ptri.render.settings import RenderConfig
from ptri.skeleton import H36M17

CMU = Path(__file__).resolve().parents[2] / "shared" / "data" / "cmu_mocap.npz"
PART = {part: i for i, part in enumerate(PARTS_AND_ROOT)}
SIDES = ("left", "right")
# A small person in a T, y up, facing z; centimetres.
TREE = [
    ("Hips", -1, (0, 95, 0)), ("Spine", 0, (0, 12, 0)), ("Spine1", 1, (0, 20, 0)),
    ("Neck", 2, (0, 20, 0)), ("Head", 3, (0, 10, 0)),
    ("LeftShoulder", 2, (3, 18, 0)), ("LeftArm", 5, (14, 0, 0)), ("LeftForeArm", 6, (28, 0, 0)),
    ("LeftHand", 7, (26, 0, 0)), ("RightShoulder", 2, (-3, 18, 0)), ("RightArm", 9, (-14, 0, 0)),
    ("RightForeArm", 10, (-28, 0, 0)), ("RightHand", 11, (-26, 0, 0)),
    ("LeftUpLeg", 0, (9, 0, 0)), ("LeftLeg", 13, (0, -42, 0)), ("LeftFoot", 14, (0, -42, 0)),
    ("RightUpLeg", 0, (-9, 0, 0)), ("RightLeg", 16, (0, -42, 0)), ("RightFoot", 17, (0, -42, 0)),
]  # fmt: skip


def write_bvh(path: Path, frames: list[dict[str, tuple[float, float, float]]], tree=TREE) -> Path:
    """frames: joint -> degrees about z, x, y; children follow their parent in the tree."""
    lines, above = ["HIERARCHY"], []
    for i, (name, parent, (x, y, z)) in enumerate(tree):
        while above and above[-1] != parent:
            above.pop()
            lines.append("}")
        position = "3" if above else "6 Xposition Yposition Zposition"
        lines.append(f"{'JOINT' if above else 'ROOT'} {name} {{ OFFSET {x} {y} {z}")
        lines.append(f"CHANNELS {position} Zrotation Xrotation Yrotation")
        if all(row[1] != i for row in tree):
            lines.append(f"End Site {{ OFFSET {0.2 * x} {0.2 * y} {0.2 * z} }}")
        above.append(i)
    lines += ["}"] * len(above)
    lines += ["MOTION", f"Frames: {len(frames)}", "Frame Time: 0.0333333"]
    for frame in frames:
        numbers = [0.0, 95.0, 0.0]
        for name, *_ in tree:
            numbers += frame.get(name, (0, 0, 0))
        lines.append(" ".join(map(str, numbers)))
    path.write_text("\n".join(lines))
    return path


def turns_of(folder: Path, *frames, tree=TREE) -> np.ndarray:
    """(T, 19, 3, 3) rotations of the body's parts in the frames of a BVH file."""
    return retarget(read_bvh(write_bvh(folder / "a.bvh", frames, tree)), "a.bvh")


def write_mocap(path: Path, **changes) -> str:
    """A file of three trials: clip c is a T whose hip is c metres to the left."""
    rest = rest_pose(200.0)
    y_up = torch.stack([rest[:, 0], rest[:, 2], -rest[:, 1]], -1).numpy()
    shift = np.repeat(np.arange(3), 10)[:, None, None] * [1000, 0, 0]
    content = {
        "fps": 30,
        "kinds": np.array(["toy"]),
        "toy_positions_h36m17": (y_up + shift).astype(np.int16),
        "toy_clip_start": np.array([0, 10, 20, 30], np.int32),
        "toy_clip_source_subject": np.array([1, 1, -1], np.int16),
        "toy_clip_source_trial": np.array([3, 4, -1], np.int16),
    } | changes
    np.savez(path, **{key: value for key, value in content.items() if value is not None})
    return str(path)


def test_mocap_takes_other_bones_and_splits_trials(tmp_path):
    path = write_mocap(tmp_path / "mocap.npz")
    starts = {split: load_mocap(path, split).start.tolist() for split in ("train", "held_out")}
    assert starts == {"train": [10, 20], "held_out": [0]}
    assert load_mocap(path, "all").start.tolist() == [0, 10, 20]
    lengths = sample_bone_lengths(draws(8))
    joints = sample_mocap(draws(8), load_mocap(path, "all"), 25, 30.0, lengths)
    assert torch.allclose(bone_lengths(joints), lengths.unsqueeze(1).expand(-1, 25, -1), atol=0.05)
    # A T upright before and after: the arms stay level, the feet are the lowest, left is left.
    level = joints[..., JOINT["left_wrist"], 2] - joints[..., JOINT["left_shoulder"], 2]
    assert level.abs().max() < 0.1
    assert torch.allclose(joints[..., 2].amin(-1), torch.tensor(75.0), atol=0.01)
    left = joints[..., JOINT["left_hip"], :] - joints[..., JOINT["right_hip"], :]
    nose = joints[..., JOINT["nose"], :] - joints[..., JOINT["thorax"], :]
    assert (torch.linalg.cross(nose, left)[..., 2] > 0).all()  # nose ahead: ahead x left is up


def test_bad_mocap_files_are_named(tmp_path):
    (tmp_path / "text.npz").write_text("hello")
    part = write_mocap(tmp_path / "part.npz", toy_clip_start=None)
    pickled = write_mocap(tmp_path / "pickle.npz", toy_clip_start=np.array([{}], dtype=object))
    lonely = write_mocap(tmp_path / "lonely.npz", toy_clip_source_subject=np.array([-1] * 3))
    for path, message in (
        (tmp_path / "none.npz", "no such file"),
        (tmp_path / "text.npz", "expected format"),
        (part, "expected format"),
        (pickled, "expected format"),
        (lonely, "no clip in the split 'held_out'"),
    ):
        with pytest.raises(UserError, match=message):
            load_mocap(str(path), "held_out")


def test_bvh_is_read(tmp_path):
    path = write_bvh(tmp_path / "a.bvh", [{}, {"LeftArm": (30, 20, 10)}])
    motion = read_bvh(path)
    assert len(motion.rotations) == 2 and motion.fps == pytest.approx(30, rel=1e-3)
    arm = motion.names.index("LeftArm")
    expected = Rotation.from_euler("ZXY", [30, 20, 10], degrees=True).as_matrix()
    np.testing.assert_allclose(motion.rotations[1, arm], expected, atol=1e-9)
    assert motion.names[motion.parents[motion.names.index("LeftForeArm")]] == "LeftArm"
    assert "LeftHand_end" in motion.names
    assert (np.array(motion.parents) < np.arange(len(motion.parents))).all()


def test_limbs_point_where_the_performer_s_point(tmp_path):
    turns = turns_of(
        tmp_path,
        {},
        {"LeftArm": (-80, 0, 0)},  # hangs: turned about z, which looks at the viewer
        {"RightUpLeg": (0, -70, 0)},  # thigh forwards: about x, the left
        {"LeftForeArm": (0, 0, -90), "Hips": (0, 0, 90)},  # elbow bends forwards; turns to the left
    )
    np.testing.assert_allclose(turns[0], np.tile(np.eye(3), (19, 1, 1)), atol=1e-6)
    c, s = np.cos(np.radians(80)), np.sin(np.radians(80))
    arm = turns[1, PART["left_upper_arm"]] @ [1, 0, 0]
    np.testing.assert_allclose(arm, [c, 0, -s], atol=1e-6)  # x left, y back, z up
    thigh = turns[2, PART["right_thigh"]] @ [0, 0, -1]
    c, s = np.cos(np.radians(70)), np.sin(np.radians(70))
    np.testing.assert_allclose(thigh, [0, -s, -c], atol=1e-6)
    facing = turns[3, PART["root"]] @ [0, -1, 0]
    np.testing.assert_allclose(facing, [1, 0, 0], atol=1e-6)  # the person's former left
    # The forearm pointed left, which is backwards (y) after the turn, and is bent forwards.
    np.testing.assert_allclose(turns[3, PART["left_forearm"]] @ [1, 0, 0], [1, 0, 0], atol=1e-6)


def test_hanging_arms_at_rest_make_no_difference(tmp_path):
    hanging = ("LeftForeArm", "LeftHand", "RightForeArm", "RightHand")
    lowered = [(n, p, (0, -abs(at[0]), 0) if n in hanging else at) for n, p, at in TREE]
    turns = turns_of(tmp_path, {"LeftArm": (90, 0, 0)}, tree=lowered)
    left, right = (turns[0, PART[f"{side}_upper_arm"]] for side in SIDES)
    np.testing.assert_allclose(left @ [1, 0, 0], [1, 0, 0], atol=1e-6)
    np.testing.assert_allclose(right @ [-1, 0, 0], [0, 0, -1], atol=1e-6)


def test_a_thigh_named_after_the_hip_leaves_the_shoulders_alone(tmp_path):
    renamed = [(name.replace("UpLeg", "Hip"), parent, offset) for name, parent, offset in TREE]
    turns = turns_of(tmp_path, {"LeftShoulder": (20, 0, 0)}, tree=renamed)
    across = turns[0, PART["left_clavicle"]] @ [1, 0, 0]
    np.testing.assert_allclose(across[2], np.sin(np.radians(20)), atol=1e-6)


def test_bad_motion_is_reported(tmp_path):
    path = tmp_path / "b.bvh"
    for text, message in (
        ("no motion", "not a BVH file"),
        ("HIERARCHY\nROOT a\n{\nOFFSET 0 0\n}\nMOTION\nFrames: 1\nFrame Time: 0.1\n", "damaged"),
        ("HIERARCHY\nROOT a\n{\nOFFSET 0 0 0\nCHANNELS 1 Zspin\n}\nMOTION\n", "unknown channel"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            read_bvh(path)
    named = [(f"bone{i}", parent, offset) for i, (_, parent, offset) in enumerate(TREE)]
    lying = [(name, parent, (x, z, y)) for name, parent, (x, y, z) in TREE]
    for tree, message in ((named, "no joint that could be"), (lying, "stands at rest")):
        with pytest.raises(UserError, match=message):
            turns_of(tmp_path, {}, tree=tree)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no \.bvh file"):
        load_part_motion((str(tmp_path / "empty"),), "all")


def test_poses_come_from_a_folder_of_bvh(tmp_path):
    write_bvh(tmp_path / "a.bvh", [{"LeftArm": (-80, 0, 0)}] * 3)
    config = RenderConfig(mocap=(str(tmp_path),), mocap_share=1.0)
    seeds = [(1, i) for i in range(12)]
    poses = sample_poses(config, seeds)
    assert all(p.kind == MOCAP for p in poses)
    arms = np.stack([p.rotations[1, [PART[f"{s}_upper_arm"] for s in SIDES]] for p in poses])
    # One arm hangs: the left, or the right in the mirror.
    down = arms[:, :, 2, 0] * [1, -1] < -0.9
    assert (down.sum(1) == 1).all() and 0 < down[:, 0].sum() < 12
    again = sample_poses(config, seeds[5:7])
    np.testing.assert_array_equal(again[0].rotations, poses[5].rotations)


@pytest.mark.skipif(not CMU.exists(), reason="needs the CMU motion-capture file")
def test_cmu_limbs_agree_with_its_positions():
    motion = load_part_motion((str(CMU),), "all")
    assert abs(np.linalg.det(motion.rotations[::500]) - 1).max() < 1e-4
    # The kind whose skeleton does not stand at rest comes first and is left out.
    positions = load_mocap(str(CMU), "all").positions.numpy()[-len(motion.rotations) :]
    assert (positions[:, JOINT["head"], 2] > positions[:, JOINT["hip"], 2]).mean() > 0.95
    rest = load_bones()
    for bone, (child, parent) in enumerate(H36M17.bones):
        name = H36M17.joints[child].split("_")[-1]
        seen = positions[::50, child] - positions[::50, parent]
        ours = motion.rotations[::50, rest.part[bone]] @ rest.direction[bone].numpy()
        cosine = (seen * ours).sum(-1) / np.linalg.norm(seen, axis=-1)
        angle = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
        if name in ("knee", "foot", "elbow", "wrist"):
            assert np.percentile(angle, 99) < 1.0  # measured 0.3; positions are rounded to mm
        if name == "spine":  # other definitions of the trunk's joints: measured 12 in the median
            assert np.median(angle) < 20
    train, hidden = (load_part_motion((str(CMU),), split) for split in ("train", "held_out"))
    assert len(train.rotations) + len(hidden.rotations) == len(motion.rotations)
    assert len(hidden.rotations) > 1000
