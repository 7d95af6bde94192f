"""Generated people: bones, joint limits, floor, frame rates."""

import pytest
import torch

from ptri.errors import UserError
from ptri.people.articulation import (
    ANGLES,
    PARTS,
    angles_to_rotations,
    forward_kinematics,
    global_rotations,
    limit_angles,
    limits,
    mirror_angles,
)
from ptri.people.bodies import (
    Motion,
    kind_indices,
    sample_bone_lengths,
    sample_clips,
    sample_motions,
)
from ptri.people.draws import Draws
from ptri.people.motions import KINDS, sample_angles
from ptri.posterior.body import load_body_prior
from ptri.skeleton import H36M17

CHILD, PARENT = (torch.tensor(side) for side in zip(*H36M17.bones))
JOINT = {name: index for index, name in enumerate(H36M17.joints)}
FEET = [JOINT["left_foot"], JOINT["right_foot"]]
LENGTHS = load_body_prior().mean.exp().float()


def draws(batch: int, seed: int = 0) -> Draws:
    return Draws.from_seeds([(seed, i) for i in range(batch)])


def motion_of(kind: str, num_frames: int, fps: float, seed: int, lengths=None) -> Motion:
    return sample_motions(draws(1, seed), kind_indices([kind]), num_frames, fps, lengths)


def bone_lengths(joints: torch.Tensor) -> torch.Tensor:
    return (joints[..., CHILD, :] - joints[..., PARENT, :]).norm(dim=-1)


def bend(angles: torch.Tensor) -> dict[str, torch.Tensor]:
    """How far knees point forwards and elbows fold, from joints alone; positive is human."""
    rotations, root = angles_to_rotations(angles)
    joints = forward_kinematics(rotations, root, torch.zeros(*angles.shape[:-1], 3), LENGTHS)
    world = global_rotations(rotations, root)
    result = {}
    for side in ("left", "right"):
        thigh = world[..., PARTS.index(f"{side}_thigh"), :, :]
        shank = joints[..., JOINT[f"{side}_foot"], :] - joints[..., JOINT[f"{side}_knee"], :]
        result[f"{side}_knee"] = (thigh[..., :, 1] * shank).sum(-1)  # y is backwards
        arm = world[..., PARTS.index(f"{side}_upper_arm"), :, :]
        forearm = joints[..., JOINT[f"{side}_wrist"], :] - joints[..., JOINT[f"{side}_elbow"], :]
        # The elbow pit faces -y of the upper arm, and a forearm stays in that plane.
        result[f"{side}_elbow"] = -(arm[..., :, 1] * forearm).sum(-1)
        out_of_plane = (arm[..., :, 2] * forearm).sum(-1).abs().max()
        assert out_of_plane < 0.1, side
    return result


def rest_pose(length: float) -> torch.Tensor:
    """The 17 joints (17, 3) mm of the T, every bone of one length."""
    eye, lengths = torch.eye(3), torch.full((16,), length)
    local = eye.expand(1, len(PARTS), 3, 3)
    return forward_kinematics(local, eye.unsqueeze(0), torch.zeros(1, 3), lengths)[0]


def test_rest_pose_is_a_t_facing_minus_y():
    """Left is +x, the arms are level, the feet below, the nose in front."""
    joints = rest_pose(100.0)
    assert torch.allclose(joints[JOINT["left_foot"]], torch.tensor([100.0, 0, -200]))
    assert torch.allclose(joints[JOINT["right_foot"]], torch.tensor([-100.0, 0, -200]))
    for side, sign in (("left", 1), ("right", -1)):
        arm = joints[JOINT[f"{side}_wrist"]] - joints[JOINT[f"{side}_shoulder"]]
        assert torch.allclose(arm, torch.tensor([200.0 * sign, 0, 0]), atol=1e-4)
    nose = joints[JOINT["nose"]] - joints[JOINT["thorax"]]
    assert nose[1] < -50 and nose[2] > 50


def test_named_angles_move_the_right_way():
    """Each angle of 60 deg moves its end joint the way its name says."""
    cases = {
        "left_arm_flex": ("left_wrist", "left_shoulder", (0, -1, 0)),
        "right_arm_abd": ("right_wrist", "right_shoulder", (-1, 0, 0)),
        "left_elbow_flex": ("left_wrist", "left_elbow", (0, -1, 0)),
        "left_hip_flex": ("left_knee", "left_hip", (0, -1, 0)),
        "right_hip_abd": ("right_knee", "right_hip", (-1, 0, 0)),
        "left_knee_flex": ("left_foot", "left_knee", (0, 1, 0)),
        "spine_flex": ("thorax", "hip", (0, -1, 0)),
        "root_pitch": ("head", "hip", (0, -1, 0)),
        "chest_side": ("thorax", "spine", (1, 0, 0)),
        "root_roll": ("head", "hip", (1, 0, 0)),
        "left_clavicle_up": ("left_shoulder", "thorax", (0, 0, 1)),
        "right_clavicle_forward": ("right_shoulder", "thorax", (0, -1, 0)),
    }
    angles = torch.zeros(len(cases) + 1, len(ANGLES))  # the last: none
    for row, name in zip(angles, cases):
        row[ANGLES.index(name)] = torch.pi / 3
    lengths, origin = torch.full((16,), 100.0), torch.zeros(len(angles), 3)
    joints = forward_kinematics(*angles_to_rotations(angles), origin, lengths)
    for moved, (end, start, direction) in zip(joints - joints[-1], cases.values()):
        limb = moved[JOINT[end]] - moved[JOINT[start]]
        assert limb @ torch.tensor(direction, dtype=torch.float32) > 20, end


def test_bones_have_the_requested_lengths():
    lengths = LENGTHS * torch.linspace(0.8, 1.2, 16)
    for kind in ("walk", "random", "lie_side"):
        joints = motion_of(kind, 5, 10.0, 1, lengths.unsqueeze(0)).joints3d[0]
        assert torch.allclose(bone_lengths(joints), lengths.expand(5, -1), atol=0.05)  # mm
    clips = sample_clips(draws(20), 3, 10.0, bone_spread=0.1)
    expected = clips.bone_lengths.unsqueeze(1).expand(-1, 3, -1)
    assert torch.allclose(bone_lengths(clips.joints3d), expected, atol=0.05)


@pytest.mark.parametrize(("children", "tolerance"), [(0.0, 6e-4), (0.25, 2.5e-3)])
def test_sampled_bodies_follow_the_statistics(children, tolerance):
    law, num = load_body_prior(children=children), 4000
    logs = sample_bone_lengths(draws(num), children=children).log().double()
    std = law.covariance.diagonal().sqrt()
    assert ((logs.mean(0) - law.mean) / (std / num**0.5)).abs().max() < 4
    assert torch.allclose(torch.cov(logs.T), law.covariance, atol=tolerance)


def test_bodies_are_symmetric_and_children_have_proportions_of_their_own():
    # Left and right differ by the prior's 1 % per bone, with the data sets' spread as well.
    pair = [CHILD.tolist().index(JOINT[f"{side}_knee"]) for side in ("left", "right")]
    spread = sample_bone_lengths(draws(500), spread=0.2).log()[:, pair]
    assert (spread[:, 0] - spread[:, 1]).std() < 0.02
    assert spread[:, 0].std() > 0.17
    # Of unknown scale: adults and children lie on one line of size against proportions, nearly.
    child = sample_bone_lengths(draws(500), children=1.0).log().double()
    error = []  # of the log size, by generalised least squares
    for prior in (load_body_prior(), load_body_prior(children=0.25)):
        weight = torch.linalg.solve(prior.covariance, torch.ones_like(prior.mean))
        error.append((prior.mean - child) @ (weight / weight.sum()))
    assert error[0].mean() > 0.08
    assert error[1].square().mean() < 0.15 * error[0].square().mean()


def test_joint_limits_hold_and_limbs_bend_the_human_way():
    low, high = limits()
    for kind in range(len(KINDS)):
        angles, heading, balance = sample_angles(
            draws(30, kind), torch.full((30,), kind), torch.arange(8) / 5
        )
        assert (angles >= low - 1e-4).all() and (angles <= high + 1e-4).all(), KINDS[kind]
        assert angles.shape == (30, 8, len(ANGLES)) and heading.shape == balance.shape == (30, 8)
        for name, value in bend(angles).items():
            assert value.min() > -0.1, (KINDS[kind], name)
    # The control: angles beyond the limits do bend backwards, and are pressed back.
    wild = 2 * torch.randn(200, len(ANGLES), generator=torch.Generator().manual_seed(0))
    pressed = bend(limit_angles(wild))
    for name, value in bend(wild).items():
        assert (value < -50).float().mean() > 0.2 and pressed[name].min() > -0.1
    middle = ((low + high) / 2).unsqueeze(0)
    assert torch.allclose(limit_angles(middle), middle)
    with pytest.raises(UserError, match="unknown motion 'fly'"):
        kind_indices(["fly"])


def test_mirror_swaps_the_body():
    """Mirrored angles give the mirror image of the joints."""
    angles = limit_angles(torch.randn(10, len(ANGLES), generator=torch.Generator().manual_seed(3)))
    lengths = (LENGTHS + LENGTHS[list(H36M17.flip_bones)]) / 2
    joints, mirrored = (
        forward_kinematics(*angles_to_rotations(a), torch.zeros(10, 3), lengths)
        for a in (angles, mirror_angles(angles))
    )
    expected = joints[:, list(H36M17.flip)] * torch.tensor([-1.0, 1, 1])
    assert torch.allclose(mirrored, expected, atol=0.01)


def test_people_stand_on_the_floor():
    """Nothing is below the floor, something rests on it; standing heads are above the hips."""
    for kind in KINDS:
        joints = sample_clips(draws(20), 4, 10.0, [kind]).joints3d
        lowest = joints[..., 2].amin(-1)
        assert lowest.min() > 15 and lowest.max() < 115, kind
        if kind in ("gesture", "walk"):
            head, feet = joints[..., JOINT["head"], :], joints[..., FEET, :]
            assert (head[..., 2] > joints[..., JOINT["hip"], 2] + 300).all()
            assert (feet[..., 2].amin(-1) - lowest).abs().max() < 20
            # Nobody is about to fall: the head is above the feet, give or take a step.
            assert (head - feet.mean(-2))[..., :2].norm(dim=-1).median() < 250


def test_bearing_foot_does_not_slide():
    """Walkers move on, and the slower foot nearly stands still."""
    joints = sample_clips(draws(40), 60, 30.0, ["walk"]).joints3d
    speed = joints.diff(dim=1)[..., :2].norm(dim=-1) * 30  # mm/s
    hip = speed[..., JOINT["hip"]].median()
    assert hip > 500 and speed[..., FEET].amin(-1).median() < 0.35 * hip


def test_motion_does_not_depend_on_the_frame_rate():
    """Every third frame at 30 fps is the clip at 10 fps; neighbouring frames are close."""
    for kind in ("walk", "squat", "dance"):
        fast = motion_of(kind, 31, 30.0, 5)
        slow = motion_of(kind, 11, 10.0, 5)
        assert torch.allclose(fast.rotations[:, ::3], slow.rotations, atol=1e-3)
        assert torch.allclose(fast.root_rotation[:, ::3], slow.root_rotation, atol=1e-3)
    joints = sample_clips(draws(100), 10, 100.0).joints3d
    assert joints.diff(dim=1).norm(dim=-1).max() < 160  # mm in 10 ms: 16 m/s
