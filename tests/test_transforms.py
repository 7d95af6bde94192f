import cv2
import numpy as np
import pytest

from ptri.data import transforms
from ptri.errors import UserError

K = np.array([[310.0, 0, 128.0], [0, 300.0, 120.0], [0, 0, 1]])


def _dot(image, xy, color=(255, 255, 255)):
    cv2.circle(image, tuple(np.rint(xy * 16).astype(int).tolist()), 48, color, -1, cv2.LINE_AA, 4)


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
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (200, 256, 3)).astype(np.uint8)
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
        image = np.zeros((256, 256, 3), np.uint8)
        _dot(image, drawn)
        cropped, turn = transforms.crop_camera(K, np.array([130.0, 118.0]), 230.0, 192, roll)
        assert abs(cropped[[0, 1], [1, 0]]).max() == 0  # no skew
        result = transforms.warp(image, K, cropped, turn, 192, dist)
        xy = transforms.project(point, cropped, turn, np.zeros(3))[0, :2]
        errors.append(np.linalg.norm(xy - _centroid(result)))
        unturned = transforms.project(point, cropped, turn.T, np.zeros(3))[0, :2]
        wrong.append(np.linalg.norm(unturned - _centroid(result)))
    assert max(errors) < 0.1  # px; 0.04 measured
    if roll:
        assert max(wrong) > 5


def test_reduction_keeps_the_geometry(tmp_path):
    """Decoding at half size is a resize by 1/2 in the pixel-centre convention."""
    image = np.zeros((400, 400, 3), np.uint8)
    dot = np.array([251.3, 130.8])
    cv2.circle(image, tuple(np.rint(dot * 16).astype(int).tolist()), 200, (255,) * 3, -1, 16, 4)
    cv2.imwrite(str(tmp_path / "a.jpg"), image, [cv2.IMWRITE_JPEG_QUALITY, 100])
    for reduction in (1, 2, 4, 8):
        small = transforms.read_jpeg(tmp_path / "a.jpg", reduction)
        assert small.shape[0] == 400 // reduction
        small[small < 20] = 0  # compression noise
        expected = (dot + 0.5) / reduction - 0.5
        assert np.linalg.norm(_centroid(small) - expected) < 0.06  # px
    sides = (100, 511, 512, 1100, 9000)
    assert [transforms.reduction_for(side, 256) for side in sides] == [1, 1, 2, 4, 8]


def test_jpeg_errors(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "img_000001.jpg"
    cv2.imwrite(str(path), rng.integers(0, 256, (64, 64, 3)).astype(np.uint8))
    whole = path.read_bytes()
    transforms.check_jpeg(path)
    path.write_bytes(whole + b"\0" * 16)  # padding is harmless
    transforms.read_jpeg(path)
    path.write_bytes(whole[: len(whole) * 2 // 3])
    assert cv2.imread(str(path)) is not None  # the control: OpenCV accepts it
    for check in (transforms.read_jpeg, transforms.check_jpeg):
        with pytest.raises(UserError, match=r"img_000001\.jpg: truncated JPEG"):
            check(path)
    rubbish = b"\xff\xd8" + b"rubbish" * 9 + b"\xff\xd9"
    for content, words in (
        (rubbish, "damaged JPEG"), (b"GIF89a", "not a JPEG"), (b"", "empty image"),
    ):  # fmt: skip
        path.write_bytes(content)
        with pytest.raises(UserError, match=words):
            transforms.read_jpeg(path)
    for check in (transforms.read_jpeg, transforms.check_jpeg):
        with pytest.raises(UserError, match="cannot be read"):
            check(tmp_path / "none.jpg")


def test_normalise_is_the_backbones():
    image = np.random.default_rng(0).integers(0, 256, (5, 4, 3), np.uint8)
    expected = (image / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    for picture, other in ((image, expected), (image[:, ::-1], expected[:, ::-1])):  # mirrored too
        np.testing.assert_allclose(transforms.normalise(picture).permute(1, 2, 0), other, atol=1e-6)
