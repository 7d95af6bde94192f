"""Evaluation: known errors come out as they went in; every frame counts; files are complete."""

import csv
import json

import cv2
import h5py
import numpy as np
import pytest
import torch
from fake_model import FakeModel, fake_models_solve_themselves  # noqa: F401
from h36m_fixture import STANDING, make_tiny_h36m

from ptri import config
from ptri.data.multiview import MultiView, build_index, open_split
from ptri.errors import UserError
from ptri.evaluation import draw as visualize
from ptri.evaluation import outputs
from ptri.evaluation.draw_rig import rig_picture
from ptri.evaluation.evaluate import evaluate
from ptri.evaluation.pictures import spread
from ptri.evaluation.studio import Studio
from ptri.evaluation.table import UNDAMAGED
from ptri.geometry.rotations import so3_exp
from ptri.posterior.moments import posterior_from_cameras
from ptri.skeleton import H36M17
from ptri.structures import Cameras, RigPosterior

KEYS = [
    "loss", "loss/hm", "loss/x3d", "x2d/l1", "x2d/l2", "x3d/l1", "x3d/l2", "mpjpe", "n_mpjpe",
    "pa_mpjpe", "mpjpe_calibrated", "rotation_error_deg_median", "rotation_failures",
    "coverage_50", "coverage_90", "seconds_per_frame",
]  # fmt: skip
POOLED = [f"pooled/{key}" for key in KEYS[7:]]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("h36m")
    make_tiny_h36m(folder, num_frames=3, size=128)
    return folder


def settings(root, tmp_path, *extra):
    return config.load(
        None,
        [
            "run.name=test", f"data.root={root}", "data.test_subjects=[9]", "data.image_size=64",
            "data.workers=0", f"evaluate.out={tmp_path}", "evaluate.batch_size=2",
            "evaluate.pictures=1", *extra,
        ],
    )  # fmt: skip


def evaluate_with(root, out, *extra, **errors):
    """Figures, text and folder of a model of known errors; the data set and the model."""
    options = settings(root, out, *extra)
    dataset = open_split(options, "test")
    model = FakeModel(dataset, **errors)
    folder = outputs.output_folder(options, overwrite=False)
    return *evaluate(model, dataset, options, folder), folder, dataset, model


@pytest.fixture(scope="module")
def evaluated(root, tmp_path_factory):
    return evaluate_with(root, tmp_path_factory.mktemp("out"), noise=0.5, error_deg=2.0)


def test_metrics_file_has_exactly_the_promised_keys(evaluated):
    figures, _, folder, *_ = evaluated
    written = json.loads((folder / "metrics.json").read_text())
    assert list(written) == KEYS + POOLED
    assert written == pytest.approx(figures) and np.isfinite(list(written.values())).all()


def test_known_rotation_errors_come_out(evaluated):
    figures, _, folder, _, _ = evaluated
    # Views 1 to 3 are turned alike by 2 deg in the reference frame: pairs with view 0 are 2 deg
    # off; 3 frames pooled: 2 / sqrt(3). The posterior mean of 64 samples adds a little.
    details = json.loads((folder / "details.json").read_text())
    single, pooled = (
        [pair["rotation_error_deg_median"] for pair in details[kind]["pairs"].values()]
        for kind in ("single", "pooled")
    )
    assert len(single) == 6 and single[:3] == pytest.approx([2.0] * 3, abs=0.8)
    assert pooled[0] == pytest.approx(single[0] / 3**0.5, rel=0.1)
    assert figures["rotation_failures"] == 0
    # Wrong cameras cost accuracy; the true ones are the ceiling.
    assert figures["mpjpe"] > figures["pooled/mpjpe"] > figures["mpjpe_calibrated"]
    assert figures["x2d/l2"] == pytest.approx(0.5 * 1.2533, rel=0.1)  # mean of a Rayleigh law
    assert figures["x2d/l1"] == pytest.approx(0.5 * 0.7979, rel=0.1)


def test_failures_are_counted(root, tmp_path):
    plain = "evaluate.pictures=0", "evaluate.pool_frames=0"
    figures, text, *_ = evaluate_with(root, tmp_path, *plain, error_deg=15.0, spread_deg=0.3)
    assert list(figures) == KEYS
    assert figures["rotation_failures"] == pytest.approx(0.5)  # the three pairs with view 0
    assert figures["coverage_90"] == 0
    assert "pooled" not in text


def test_every_frame_counts_once_and_scenes_are_pooled(evaluated):
    _, _, folder, dataset, model = evaluated
    assert len(dataset) == 6  # two scenes of three frames, read in batches of two and one
    with h5py.File(folder / "predictions.h5") as file:
        assert file["frame"][:].tolist() == [0, 5, 10] * 2
        assert file["single/joints3d"].shape == (6, 17, 3)
        assert file["pooled/covariance"].shape == (6, 17, 3, 3)
        assert file["single/samples_R"].shape == (6, 32, 4, 3, 3)
        assert file["camera_names"].asstr()[:].tolist()[0] == "54138969"
        truth = np.stack([dataset[i].joints3d.numpy() for i in range(6)])
        np.testing.assert_allclose(file["joints3d_true"][:], truth, atol=1e-3)
        # All frames of a scene share the pooled cameras.
        R = file["pooled/R"][:]
        np.testing.assert_array_equal(R[0], R[2])
        assert np.abs(file["single/R"][0] - R[0]).max() > 0.005
    single = [shape for shape in model.solved if shape[1] == 1]
    pooled = [shape for shape in model.solved if shape[1] > 1]
    assert sum(shape[0] for shape in single) == 6
    assert pooled == [(1, 3, 4), (1, 3, 4)]


def test_printed_lines_and_files(evaluated):
    figures, text, folder, _, _ = evaluated
    lines = text.splitlines()
    assert [line.split(":")[0] for line in lines[:7]] == KEYS[:7]
    assert f"x3d/l2: {figures['x3d/l2']:.4f}" == lines[6]
    assert UNDAMAGED in text  # Greeting-2 of S9 is one of them
    assert (folder / "table.txt").read_text() == text + "\n"
    with open(folder / "per_action.csv") as file:
        rows = {row["action"]: row for row in csv.DictReader(file)}
    assert set(rows) == {"Greeting", "Walking", "all frames", "mean of actions", UNDAMAGED}
    assert float(rows["all frames"]["single/mpjpe"]) == pytest.approx(figures["mpjpe"], abs=1e-3)
    assert int(rows[UNDAMAGED]["frames"]) == 3
    assert rows[UNDAMAGED]["single/mpjpe"] == rows["Walking"]["single/mpjpe"]
    kinds = {path.stem.rpartition("_")[2] for path in (folder / "pictures").iterdir()}
    assert kinds == {"views", "heatmaps", "skeleton", "rig", "overview"}


def test_a_missing_view_is_no_obstacle(root, tmp_path):
    options = settings(root, tmp_path)
    index = build_index(options.data, "test")
    index.seen[1, 2] = False  # the second frame lacks the third camera
    dataset = MultiView(index, options.data)
    figures, _ = evaluate(FakeModel(dataset), dataset, options, tmp_path / "x")
    assert all(np.isfinite(value) for value in figures.values())
    with h5py.File(tmp_path / "x/predictions.h5") as file:
        order = file["frame"][:].tolist()
        assert sorted(order[:3]) == [0, 5, 10]
        seen = np.isfinite(file["keypoints/xy"][order.index(5)]).all((1, 2))
        assert seen.tolist() == [True, True, False, True]


def test_only_own_files_are_removed(evaluated):
    folder = evaluated[2]
    (folder / "notes.txt").write_text("mine")
    outputs.clear(folder)
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


def test_a_known_studio_is_a_row_of_its_own(root, tmp_path):
    make_tiny_h36m(tmp_path / "data", ("S1", "S5", "S6", "S9"), ("Walking-1",), num_frames=2)
    extra = "data.train_subjects=[1,5,6]", "evaluate.known_studio=true"
    figures, text, *_ = evaluate_with(tmp_path / "data", tmp_path / "out", *extra, error_deg=2.0)
    assert "alone, known studio" in text
    assert [f"studio/{key}" for key in KEYS[7:]] == [k for k in figures if k.startswith("studio/")]
    studio = Studio(open_split(settings(tmp_path / "data", tmp_path, *extra), "test"))
    law, turned = studio.prior([0, 2, 3]).poses, studio.prior([2, 0]).poses
    assert law.R.shape == (3, 3, 3) and law.information.shape == (12, 12)
    torch.testing.assert_close(turned.R[1], law.R[1].mT, atol=1e-6, rtol=0)
    with pytest.raises(UserError, match=r"S9 of data.train_subjects is tested"):
        evaluate_with(tmp_path / "data", tmp_path / "out2", extra[1], "data.train_subjects=[1,9]")
    with pytest.raises(UserError, match="1 rigs to learn from"):
        evaluate_with(root, tmp_path / "out3", extra[1], "data.train_subjects=[1]")


def test_spread_keeps_both_ends():
    assert spread(5, 50) == [0, 1, 2, 3, 4]
    chosen = spread(1000, 7)
    assert len(chosen) == 7 and chosen[0] == 0 and chosen[-1] == 999
    assert spread(1, 7) == [0]


def test_write_json_takes_arrays_and_nan(tmp_path):
    outputs.write_json(tmp_path / "a.json", {"x": np.float32(1), "y": [np.nan], "z": np.arange(2)})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1.0, "y": [None], "z": [0, 1]}


def test_rows_of_a_batch_are_independent_of_its_size(root, tmp_path, evaluated):
    larger = "evaluate.pictures=0", "evaluate.batch_size=4"
    figures, *_ = evaluate_with(root, tmp_path, *larger, noise=0.5, error_deg=2.0)
    same = [[each[key] for key in KEYS[:-1]] for each in (figures, evaluated[0])]
    assert same[0] == pytest.approx(same[1], rel=1e-4, abs=1e-4)


LEFT_KNEE, RIGHT_KNEE = H36M17.joints.index("left_knee"), H36M17.joints.index("right_knee")


@pytest.fixture
def joints():
    return STANDING * [1, -1, 1] + [0, 800, 4000]  # camera axes: y down


NAMES = ["a", "b", "c"]
WHITE = np.full((100, 100, 3), 255, np.uint8)


def ring():
    """Three cameras around a point 4 m in front of the first."""
    R = so3_exp(torch.tensor([[0, -angle, 0] for angle in (0.0, 1.5, 3.0)]).double())
    middle = torch.tensor([0, 0, 4000.0]).double()
    return Cameras(None, R, middle - R @ middle)


def certain(cameras):
    return posterior_from_cameras(Cameras(None, cameras.R[None], cameras.t[None]))


def nearest(picture, colour):
    """(x, y) of the pixels near a colour, and their number."""
    close = np.abs(picture.astype(int) - colour).sum(-1) < 60
    return np.argwhere(close)[:, ::-1], int(close.sum())


def test_overlay_puts_marks_where_they_belong():
    xy = np.full((17, 2), np.nan)
    xy[LEFT_KNEE], xy[RIGHT_KNEE] = [20, 30], [80, 70]
    picture = visualize.overlay(WHITE, H36M17, xy, height=400)
    assert picture.shape == (400, 400, 3) and picture.dtype == np.uint8
    for joint, colour in ((LEFT_KNEE, visualize.LEFT), (RIGHT_KNEE, visualize.RIGHT)):
        where, count = nearest(picture, colour)
        assert count > 10
        np.testing.assert_allclose(where.mean(0), (xy[joint] + 0.5) * 4 - 0.5, atol=1.0)
    titled = visualize.overlay(WHITE, H36M17, xy, height=400, title="a title, 3 px")
    assert titled.shape == (426, 400, 3)
    np.testing.assert_array_equal(titled[26:], picture)


def test_overlay_ellipse_has_the_covariance_axes():
    xy = np.full((17, 2), np.nan)
    xy[LEFT_KNEE] = [50, 50]
    covariance = np.tile(np.eye(2), (17, 1, 1))
    covariance[LEFT_KNEE] = np.diag([100.0, 4.0])  # 21 and 4.3 px at 90 %
    picture = visualize.overlay(WHITE, H36M17, xy, covariance, height=100)
    marked = np.argwhere((picture < 250).any(-1))[:, ::-1]
    extent = np.ptp(marked, axis=0) + 1
    np.testing.assert_allclose(extent / 2, [21.5, 4.3], atol=1.6)
    # Nothing of a covariance or a point that is not finite is drawn.
    covariance[LEFT_KNEE] = np.nan
    few = visualize.overlay(WHITE, H36M17, xy, covariance, height=100)
    assert (few < 250).any(-1).sum() < (picture < 250).any(-1).sum() / 3


def test_heatmaps_are_bright_at_the_peak():
    y, x = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    logits = -((x - 4) ** 2 + (y - 10) ** 2)[None] / 2.0
    nowhere = torch.full((1, 2), torch.nan)
    picture = visualize.heatmap_picture(torch.zeros(3, 64, 64), logits, nowhere)
    peak = np.unravel_index(picture.sum(-1).argmax(), picture.shape[:2])
    scale = picture.shape[0] / 16
    np.testing.assert_allclose(np.array(peak) / scale, [10.5, 4.5], atol=0.5)


def test_skeleton_sides_show_left_on_the_viewers_right(joints):
    picture = visualize.skeleton_sides(joints, title="standing")
    assert picture.dtype == np.uint8 and picture.ndim == 3
    front = picture[60 : picture.shape[0] - 60, : picture.shape[1] // 2]
    left, right = (
        nearest(front, colour)[0][:, 0].mean() for colour in (visualize.LEFT, visualize.RIGHT)
    )
    assert left > right + 30  # facing us, the person's left is on our right
    turned = joints * [-1, 1, -1] + [0, 0, 8000]  # turned away: we walk around
    again = visualize.skeleton_sides(turned, title="standing")
    assert np.abs(again.astype(int) - picture).mean() < 1.0


def test_pictures_survive_missing_joints(joints, tmp_path):
    joints = joints.copy()
    joints[[0, 7, 9]] = np.nan
    covariance = np.tile(np.eye(3) * 400, (17, 1, 1))
    covariance[0] = np.nan
    side = visualize.skeleton_sides(joints, covariance, joints + 20)
    rig = rig_picture(certain(ring()), joints, NAMES)
    sheet = visualize.beside([side, rig], 1)
    assert sheet.shape[1] >= max(side.shape[1], rig.shape[1])
    visualize.save(sheet, tmp_path / "deep/sheet.png")
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "deep/sheet.png"))[..., ::-1], sheet)


def test_rig_picture_shows_cameras_samples_and_truth(joints):
    cameras = ring()
    bare = rig_picture(certain(cameras), joints, NAMES)
    for colour in visualize.CAMERA_COLOURS[:3]:
        assert nearest(bare, colour)[1] > 50
    noise = 100 * torch.randn(64, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    samples = cameras.R.repeat(64, 1, 1, 1, 1), cameras.t + noise
    weights, nothing = torch.full((64, 1), 1 / 64).double().log(), torch.zeros(64, 1, 0)
    posterior = RigPosterior(*samples, weights, torch.ones(1), nothing)
    assert np.abs(rig_picture(posterior, joints, NAMES).astype(int) - bare).sum() > 0
    # The true rig at half the scale is scaled to the estimate's size: it lies under it.
    other = rig_picture(certain(cameras), joints, NAMES, cameras._replace(t=0.5 * cameras.t))
    moved = cameras.t + torch.tensor([0, 0, 1]) * torch.arange(3)[:, None] * 800
    apart = rig_picture(certain(cameras), joints, NAMES, cameras._replace(t=moved))
    grey = [nearest(p, visualize.TRUTH)[1] for p in (bare, other, apart)]
    assert grey[2] > grey[1] + 50
