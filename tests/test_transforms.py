"""Crops and images as they are read, and their changes in training."""

import dataclasses

import cv2
import numpy as np
import pytest

from ptri.config import AugmentConfig
from ptri.data import transforms
from ptri.data.augmentation import augment_crop, augment_image, color_matrix
from ptri.errors import UserError
from ptri.skeleton import H36M17

K = np.array([[310.0, 0, 128.0], [0, 300.0, 120.0], [0, 0, 1]])
OFF = AugmentConfig(color=0, blur=0, noise=0, jpeg=0, occluder=0, scale=0, shift=0,
                    rotation_deg=0)  # fmt: skip
EVERYTHING = AugmentConfig(
    gamma=0.5, grey=0.3, blur=0.5, noise=0.5, jpeg=0.5, low_resolution=0.5,
    occluder=0.7, border=0.3,
)  # fmt: skip


def _dot(size, xy, radius):
    """A white dot on black; xy and radius in px."""
    image, place = np.zeros((size, size, 3), np.uint8), np.rint(xy * 16).astype(int).tolist()
    return cv2.circle(image, place, 16 * radius, (255,) * 3, -1, cv2.LINE_AA, 4)


def _centroid(image):
    weight = image.astype(float).sum(-1)
    ys, xs = np.indices(weight.shape)
    return np.array([(xs * weight).sum(), (ys * weight).sum()]) / weight.sum()


def test_square_crops():
    centre, side = transforms.square_crop(np.array([10, 20, 40, 30]), 1.5)
    # columns 20..29 and rows 10..39
    np.testing.assert_allclose(centre, [24.5, 24.5])
    assert side == 45
    # of the whole image: a resize
    box = np.array([0, 0, 256, 256])
    cropped, turn = transforms.crop_camera(K, *transforms.square_crop(box), size=64)
    np.testing.assert_allclose(cropped, transforms.resize_intrinsics(K, 0.25), atol=1e-12)
    np.testing.assert_array_equal(turn, np.eye(3))


def test_crop_without_resize_shifts_whole_pixels():
    image = picture(256)
    box = np.array([30, 50, 94, 114])
    cropped, turn = transforms.crop_camera(K, *transforms.square_crop(box), size=64)
    result = transforms.warp(image, K, cropped, turn, 64)
    np.testing.assert_array_equal(result, image[30:94, 50:114])


@pytest.mark.parametrize("roll", [0.0, 0.3, -1.2])
@pytest.mark.parametrize("dist", [None, np.array([-0.2, 0.24, -0.0014, -0.001, 0.0])])
def test_the_crops_camera_projects_onto_the_drawn_dot(roll, dist):
    errors, wrong = [], []
    for x, y in ((-0.2, 0.1), (0.0, -0.25), (0.22, 0.2)):
        point = np.array([[x, y, 1.0]]) * 3000
        drawn = cv2.projectPoints(point, np.zeros(3), np.zeros(3), K, dist)[0][0, 0]
        image = _dot(256, drawn, 3)
        cropped, turn = transforms.crop_camera(K, np.array([130.0, 118.0]), 230.0, 192, roll)
        assert abs(cropped[[0, 1], [1, 0]]).max() == 0  # no skew
        result = transforms.warp(image, K, cropped, turn, 192, dist)
        xy = transforms.project(point, cropped, turn, np.zeros(3))[0, :2]
        unturned = transforms.project(point, cropped, turn.T, np.zeros(3))[0, :2]
        for place, gaps in ((xy, errors), (unturned, wrong)):
            gaps.append(np.linalg.norm(place - _centroid(result)))
    assert max(errors) < 0.1  # px; 0.04 measured
    if roll:
        assert max(wrong) > 5


@pytest.mark.parametrize("kind", ["jpg", "png"])
def test_reduction_keeps_the_geometry(tmp_path, kind):
    """Decoding at half size is a resize by 1/2 in the pixel-centre convention."""
    dot = np.array([251.3, 130.8])
    image = _dot(400, dot, 12)
    cv2.imwrite(str(tmp_path / f"a.{kind}"), image, [cv2.IMWRITE_JPEG_QUALITY, 100])
    for reduction in (1, 2, 4, 8):
        small = transforms.read_image(tmp_path / f"a.{kind}", reduction)
        assert small.shape[0] == 400 // reduction
        small[small < 20] = 0  # compression noise
        expected = (dot + 0.5) / reduction - 0.5
        assert np.linalg.norm(_centroid(small) - expected) < 0.06  # px
    sides = (100, 511, 512, 1100, 9000)
    assert [transforms.reduction_for(side, 256) for side in sides] == [1, 1, 2, 4, 8]


@pytest.mark.parametrize(
    "kind, start, end",
    [("JPEG", b"\xff\xd8", b"\xff\xd9"), ("PNG", b"\x89PNG\r\n\x1a\n", b"IEND")],
)
def test_image_errors(tmp_path, kind, start, end):
    path = tmp_path / ("img_000001.jpg" if kind == "JPEG" else "img_000001.png")
    cv2.imwrite(str(path), picture(64))
    whole = path.read_bytes()
    transforms.check_image(path)
    path.write_bytes(whole + b"\0" * 16)  # padding is harmless
    transforms.read_image(path)
    path.write_bytes(whole[: len(whole) * 2 // 3])
    if kind == "JPEG":
        assert cv2.imread(str(path)) is not None  # the control: OpenCV accepts it
    for check in (transforms.read_image, transforms.check_image):
        with pytest.raises(UserError, match=rf"{path.name}: truncated {kind}"):
            check(path)
    rubbish = start + b"rubbish" * 9 + end
    for content, words in (
        (rubbish, f"damaged {kind}"), (b"GIF89a", "neither a JPEG"), (b"", "empty image"),
    ):  # fmt: skip
        path.write_bytes(content)
        with pytest.raises(UserError, match=words):
            transforms.read_image(path)
    for check in (transforms.read_image, transforms.check_image):
        with pytest.raises(UserError, match="cannot be read"):
            check(tmp_path / "none.jpg")


def test_normalise_is_the_backbones():
    image = np.random.default_rng(0).integers(0, 256, (5, 4, 3), np.uint8)
    expected = (image / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    for picture, other in ((image, expected), (image[:, ::-1], expected[:, ::-1])):  # mirrored too
        np.testing.assert_allclose(transforms.normalise(picture).permute(1, 2, 0), other, atol=1e-6)


def augmented(image, seed, **changes):
    return augment_image(image, dataclasses.replace(OFF, **changes), np.random.default_rng(seed))


def picture(size=48, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)


def test_seeded_and_leaves_its_input():
    image = picture()
    copy = image.copy()
    first, again = (
        [augment_image(image, EVERYTHING, np.random.default_rng(i)) for i in range(12)]
        for _ in range(2)
    )
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(image, copy)
    assert all(result.shape == image.shape and result.dtype == np.uint8 for result in first)
    assert all((a != first[0]).any() for a in first[1:])


def test_can_be_switched_off():
    image = picture()
    np.testing.assert_array_equal(augmented(image, 1), image)
    rng = np.random.default_rng(1)
    centre, side, roll = augment_crop(np.array([5.0, 6.0]), 30.0, np.zeros((17, 2)), OFF, rng)
    assert centre.tolist() == [5.0, 6.0] and side == 30.0 and roll == 0.0


@pytest.mark.parametrize("name", ["gamma", "grey", "color", "blur", "noise", "jpeg",
                                  "low_resolution", "occluder", "border"])  # fmt: skip
def test_every_field_changes_the_image(name):
    image, strength = picture(), 0.5 if name in ("gamma", "color") else 1.0
    assert all((augmented(image, i, **{name: strength}) != image).any() for i in range(20))


def test_grey_is_grey():
    image = picture()
    grey = augmented(image, 0, grey=1)
    assert np.ptp(grey.astype(int), axis=-1).max() == 0
    expected = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    assert np.abs(grey[..., 0].astype(int) - expected).max() <= 1


def test_color_matrix_keeps_grey_under_hue_and_turns_contrast_about_the_mean(monkeypatch):
    rng = np.random.default_rng(0)
    monkeypatch.setattr("ptri.data.augmentation.HUE", 0.5)
    hue = color_matrix(dataclasses.replace(OFF, color=1e-9), np.zeros(3), rng)
    np.testing.assert_allclose(hue[:, :3] @ np.ones(3), np.ones(3), atol=1e-8)
    np.testing.assert_allclose(hue[:, :3] @ hue[:, :3].T, np.eye(3), atol=1e-8)
    assert np.abs(hue[:, :3] - np.eye(3)).max() > 0.05 and abs(hue[:, 3]).max() < 1e-6
    mean = np.array([120.0, 90.0, 60.0])
    means = []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        matrix = color_matrix(dataclasses.replace(OFF, color=0.4), mean, rng)
        means.append(matrix @ np.append(mean, 1))
    # Brightness has factors 0.6 to 1.4, mean 1; standard error of 300 draws 0.015.
    assert abs(np.mean(means) / mean.mean() - 1) < 0.06


def test_low_resolution_and_border():
    # A picture without detail, so that sampling changes it little: nothing is shifted.
    image, noisy = cv2.resize(picture(4), (64, 64), interpolation=cv2.INTER_CUBIC), picture(64)
    assert np.abs(augmented(image, 3, low_resolution=1).astype(int) - image).mean() < 8
    assert augmented(noisy, 3, low_resolution=1).std() < 0.8 * noisy.std()
    sides = set()
    for seed in range(40):
        black = (augmented(noisy, seed, border=1) == 0).all(-1)
        assert 0.03 < black.mean() < 0.42
        edges = {"top": black[0], "bottom": black[-1], "left": black[:, 0], "right": black[:, -1]}
        sides |= {name for name, line in edges.items() if line.all()}
    assert sides == {"top", "bottom", "left", "right"}


def test_half_body_crops_hold_the_part():
    joints = np.random.default_rng(0).uniform(0, 100, (17, 2))
    joints[:, 1] = [200, 150, 100, 100, 150, 200, 100, 80, 60, 10, 90, 75, 60, 60, 75, 90, 40]
    augment = dataclasses.replace(OFF, half_body=1)
    kinds = {"upper": 0, "legs": 0}
    for seed in range(60):
        rng = np.random.default_rng(seed)
        centre, side, _ = augment_crop(np.array([50.0, 100.0]), 220.0, joints, augment, rng)
        inside = (np.abs(joints - centre) <= side / 2).all(-1)
        names = {name for name, held in zip(H36M17.joints, inside) if held}
        upper = {"head", "nose", "left_wrist", "right_elbow"} <= names
        legs = {"left_knee", "right_knee", "left_foot", "right_foot"} <= names
        assert (upper or legs) and side <= 220.0
        kinds["upper" if upper else "legs"] += 1
    assert kinds["legs"] > 10 and kinds["upper"] > 25, kinds
