"""Training-time changes of crops and images."""

import dataclasses

import cv2
import numpy as np
import pytest

from ptri.config import AugmentConfig
from ptri.data.augmentation import augment_crop, augment_image, color_matrix
from ptri.skeleton import H36M17

OFF = AugmentConfig(color=0, blur=0, noise=0, jpeg=0, occluder=0, scale=0, shift=0,
                    rotation_deg=0)  # fmt: skip
EVERYTHING = AugmentConfig(
    gamma=0.5, grey=0.3, blur=0.5, noise=0.5, jpeg=0.5, low_resolution=0.5,
    occluder=0.7, border=0.3,
)  # fmt: skip


def augmented(image, seed, **changes):
    return augment_image(image, dataclasses.replace(OFF, **changes), np.random.default_rng(seed))


def picture(size=48, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)


def smooth(size=64):
    """A picture without detail, so that sampling and compression change it little."""
    return cv2.resize(picture(4), (size, size), interpolation=cv2.INTER_CUBIC)


def test_seeded_and_leaves_its_input():
    image = picture()
    copy = image.copy()
    first = [augment_image(image, EVERYTHING, np.random.default_rng(i)) for i in range(12)]
    again = [augment_image(image, EVERYTHING, np.random.default_rng(i)) for i in range(12)]
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(image, copy)
    assert all(result.shape == image.shape and result.dtype == np.uint8 for result in first)
    assert all((a != first[0]).any() for a in first[1:])


def test_can_be_switched_off():
    image = picture()
    np.testing.assert_array_equal(augment_image(image, OFF, np.random.default_rng(1)), image)
    centre, side, roll = augment_crop(
        np.array([5.0, 6.0]), 30.0, np.zeros((17, 2)), OFF, np.random.default_rng(1)
    )
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
    image = smooth()
    low = augmented(image, 3, low_resolution=1)
    noisy = picture(64)
    coarse = augmented(noisy, 3, low_resolution=1)
    assert np.abs(low.astype(int) - image).mean() < 8  # no shift, detail alone is lost
    assert coarse.std() < 0.8 * noisy.std()
    sides = set()
    for seed in range(40):
        cut = augmented(noisy, seed, border=1)
        black = (cut == 0).all(-1)
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
        centre, side, _ = augment_crop(
            np.array([50.0, 100.0]), 220.0, joints, augment, np.random.default_rng(seed)
        )
        inside = (np.abs(joints - centre) <= side / 2).all(-1)
        names = {name for name, held in zip(H36M17.joints, inside) if held}
        upper = {"head", "nose", "left_wrist", "right_elbow"} <= names
        legs = {"left_knee", "right_knee", "left_foot", "right_foot"} <= names
        assert upper or legs
        assert side <= 220.0
        kinds["upper" if upper else "legs"] += 1
    assert kinds["legs"] > 10 and kinds["upper"] > 25, kinds
