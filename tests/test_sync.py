"""Cameras that started at different moments: tracks, clocks found and applied, recordings."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_model import FakeModel
from recording_fixture import NAMES, make_recording, run_script, sample_settings
from rigs_fixture import BODY, exact, exact_scene, normal

from ptri import config
from ptri.errors import UserError
from ptri.geometry.cameras import project
from ptri.geometry.rays import normalise
from ptri.models.weights import find_model
from ptri.posterior.clocks import clock_step
from ptri.posterior.equations import Bundle, plain_errors
from ptri.recordings import clocks, report, run
from ptri.recordings.clocks import bring_in_step
from ptri.recordings.keypoint_files import read_recording
from ptri.recordings.videos import Video, frame_numbers
from ptri.rig.check import RigInput
from ptri.rig.sync import Lags, _correlations, find_lags, in_step
from ptri.rig.tracks import keypoints_at, smooth_tracks
from ptri.skeleton import H36M17
from ptri.structures import Keypoints, take

OPTIONS = config.PosteriorConfig(num_samples=64)
FRAMES = 150


def parabolas(frames=20, views=2, joints=3):
    """Tracks (T, V, J, 2), and functions that give their places and velocities at moments."""
    a, b, c = (normal(views, joints, 2, seed=seed) for seed in range(3))

    def at(moment):  # (n, V)
        moment = moment[..., None, None]
        return 100 + 10 * a + b * moment + 0.1 * c * moment**2, b + 0.2 * c * moment

    return at(torch.arange(frames, dtype=torch.float64)[:, None].expand(-1, views))[0], at


def test_smooth_tracks_of_parabolas_are_exact():
    xy, at = parabolas()
    xy[9, 0, 1] = torch.nan  # not seen once
    xy[11, 1, 2] += 500.0  # a gross outlier
    moments = torch.tensor([[8.3, 10.5], [5.0, 12.9], [30.0, -1.0]], dtype=torch.float64)
    place, velocity = smooth_tracks(xy, moments)
    true_place, true_velocity = at(moments)
    assert torch.allclose(place[:2], true_place[:2], atol=0.02)
    assert torch.allclose(velocity[:2], true_velocity[:2], atol=0.02)
    assert place[2].isnan().all()  # beside the tracks


def test_keypoints_between_frames():
    xy = torch.arange(6, dtype=torch.float64)[:, None, None, None].expand(-1, 2, 3, 2).clone()
    xy[2, 0, 1] = torch.nan
    covariance = torch.eye(2).double().expand(6, 2, 3, 2, 2) * (1 + xy.nan_to_num()[..., :1, None])
    tracks = Keypoints(xy, covariance, torch.ones(6, 2, 3).double())
    moments = torch.tensor([[1.25, 1.0], [3.0, 5.0], [5.5, -0.5]], dtype=torch.float64)
    read = keypoints_at(tracks, moments)
    assert read.xy[0, 0, 0].tolist() == [1.25] * 2 and read.xy[0, 1, 1].tolist() == [1.0] * 2
    assert read.covariance[0, 0, 0].diagonal().tolist() == [2.25] * 2
    assert read.xy[0, 0, 1].tolist() == [1.0] * 2  # the frame that is near
    between = keypoints_at(tracks, moments + 0.25)
    assert between.xy[0, 0, 1].isnan().all() and between.confidence[0, 0, 1] == 0  # no frame is
    assert read.xy[1, 0, 1].tolist() == [3.0] * 2 and read.xy[1, 1, 0].tolist() == [5.0] * 2
    assert read.xy[2].isnan().all() and torch.isfinite(read.covariance).all()


@pytest.mark.parametrize(("views", "drift"), [(2, 0.0), (4, 0.0), (4, 0.001)])
def test_a_step_of_all_unknowns_finds_lags(views, drift):
    """Exact keypoints of a walking person, cameras and joints from views that are out of step, one
    of which may fall behind by more and more."""
    scene = exact_scene(1, views, 40, 3, noise=0.004, missing=0.0, fps=30.0)
    _, K, cameras, joints = (part.double() if torch.is_tensor(part) else part for part in scene[:4])
    cameras = type(cameras)(*(part.double() for part in cameras))
    truth = torch.tensor([0.0, 0.6, -0.8, 0.3], dtype=torch.float64)[:views]
    frames = torch.arange(10, 30, 2, dtype=torch.float64)
    per_view = [project(joints, take(cameras, (slice(None), None)))[0, :, v] for v in range(views)]
    tracks = torch.stack(per_view, 1)  # (40, V, 17, 2) px
    # A view that is late shows at its frame i what happened at i - lag.
    rates = drift * torch.eye(views).double()[1]
    since = torch.arange(40.0).double()[:, None] - 20
    late, _ = smooth_tracks(tracks, (since - truth) / (1 + rates) + 20)
    lags, drifts = torch.zeros(2, views, dtype=torch.float64)
    lengths = (joints[:, :, BODY.child] - joints[:, :, BODY.parent]).norm(dim=-1).log().mean(1)
    chosen = joints[:, frames.long()]
    bundle = Bundle(*exact(cameras.R, cameras.t), chosen, lengths)
    body = BODY._replace(mean=lengths[0])
    for turn in range(12):
        now = frames[:, None] + lags + (frames[:, None] - 20) * drifts
        xy, velocity = smooth_tracks(late, now)
        seen = torch.ones_like(xy[..., 0])[None]
        covariance = 0.3**turn * torch.eye(2).double().expand(*seen.shape, 2, 2)
        observations = normalise(Keypoints(xy[None], covariance, seen), K[:, :10])
        focal = K[:, :10].diagonal(dim1=-2, dim2=-1)[..., None, :2]
        errors, since = plain_errors(observations), frames[None] - 20
        of = observations, velocity / focal, errors, body, since, drifts[None, 1:]
        step = clock_step(bundle, *of)
        lags[1:] += step.lags[0, :, 0]
        drifts[1:] += step.lags[0, :, 1]
        bundle = step.bundle
    assert torch.allclose(lags, truth, atol=0.06)
    assert torch.allclose(drifts, rates, atol=1e-4)
    assert (step.covariance[0].diagonal(dim1=-2, dim2=-1) > 0).all()


def test_correlations_are_those_of_the_shared_frames():
    posture, seen = 400 + 50 * normal(60, 3, 4), normal(60, 3, seed=1) > -1
    seen[:50, 2] = False
    found = _correlations(posture, seen)
    most = found.shape[2] // 2
    assert most == 40
    for lag in (-25, 0, 13):
        rows = torch.arange(max(0, -lag), min(60, 60 - lag))
        rows = rows[seen[rows, 0] & seen[rows + lag, 1]]
        a, b = posture[rows, 0], posture[rows + lag, 1]
        a, b = a - a.mean(0), b - b.mean(0)
        value = (a * b).sum() / (a.norm() * b.norm()) * (len(rows) / 60) ** 0.5
        assert found[0, 1, most + lag] == pytest.approx(float(value))
        assert found[1, 0, most - lag] == found[0, 1, most + lag]
    assert (found[0, 2] == -np.inf).all()  # 10 frames


def out_of_step(views, lags, seed=0, noise=0.006):
    """A scene's keypoints, every view late by a whole number of frames; float64."""
    most = max(map(abs, lags))
    scene = exact_scene(1, views, FRAMES + 2 * most, seed, noise=noise, missing=0.05, fps=30.0)
    rows = [torch.arange(FRAMES) + most - lag for lag in lags]
    shifted = [
        torch.stack([value[0, own, v] for v, own in enumerate(rows)], 1).double()
        for value in scene.keypoints
    ]
    return RigInput(Keypoints(*shifted), scene.K[0, :FRAMES].double(), H36M17)


@pytest.mark.parametrize("lags", [(0, 7, -20, 31), (0, -13)])
def test_clocks_are_found_and_applied(lags):
    given = out_of_step(len(lags), lags, seed=1)
    found = find_lags(find_model(None, torch.device("cpu")), given, OPTIONS)
    off = (found.frames - torch.tensor(lags)).abs()
    assert found.frames[0] == 0 and found.std[0] == 0
    assert float(off.max()) < 0.35  # measured 0.17 and 0.15
    assert (off[1:] < 6 * found.std[1:]).all() and (found.std < 0.3).all()
    moved = in_step(given, torch.tensor(lags).double())
    first = given.keypoints.xy[:, 0]
    assert torch.equal(moved.keypoints.xy[:, 0].nan_to_num(), first.nan_to_num())
    shift = lags[1]
    rows = torch.arange(40, 80)
    late = given.keypoints.xy[rows + shift, 1]
    assert torch.equal(moved.keypoints.xy[rows, 1].nan_to_num(), late.nan_to_num())


def test_nothing_in_common():
    given = out_of_step(2, (0, 0))
    xy = given.keypoints.xy.clone()
    xy[8:, 1] = torch.nan
    given = given._replace(keypoints=given.keypoints._replace(xy=xy))
    with pytest.raises(UserError, match="clocks: view 1 shares no 16 frames"):
        find_lags(find_model(None, torch.device("cpu")), given, OPTIONS)


def late_files(root, name, lag):
    """The files of a made-up recording's camera, with what they show ``lag`` frames later."""
    folder = root / "openpose" / f"{name}_json"
    for path in sorted(folder.iterdir(), reverse=True):
        number = int(path.name.split("_")[1])
        path.rename(folder / f"{name}_{number + lag:012d}_keypoints.json")


def reader(options):
    return partial(read_recording, options.data.root, options.recording)


def settings(root, *extra):
    return config.load("configs/recording.yaml", [f"data.root={root}", "run.name=x", *extra])


def test_given_offsets_are_applied(tmp_path, monkeypatch, capsys):
    make_recording(tmp_path / "together", 12)
    make_recording(tmp_path / "apart", 12)
    late_files(tmp_path / "apart", "front", 3)
    common = ["evaluate.pictures=0", f"evaluate.out={tmp_path}", "evaluate.pool_frames=6"]
    for name, extra in (("together", []), ("apart", ["recording.offsets={front: 3}"])):
        arguments = [f"data.root={tmp_path / name}", f"run.name=out_{name}", *common, *extra]
        status, _, stderr = run_script(
            monkeypatch, capsys, "infer3d.py", "configs/recording.yaml", *arguments
        )
        assert status == 0, stderr
    texts = [(tmp_path / f"out_{name}/table.txt").read_text() for name in ("together", "apart")]
    assert "clocks" not in texts[0] and "front +3.00 (" not in texts[1]
    assert "front +3.00, right +0.00" in texts[1]
    apart = settings(tmp_path / "apart", "recording.offsets={front: 3}")
    both = settings(tmp_path / "together"), apart
    read = [bring_in_step(None, reader(options), options) for options in both]
    count = len(read[0].frames)
    np.testing.assert_allclose(read[1].xy[:count], read[0].xy)
    assert read[1].late.tolist() == [[0, 0], [3, 0], [0, 0], [0, 0]]


def test_half_frames_are_interpolated(tmp_path):
    make_recording(tmp_path, 12)
    whole = read_recording(tmp_path, settings(tmp_path).recording)
    options = settings(tmp_path, "recording.offsets={right: 2.5}")
    found = bring_in_step(None, reader(options), options)
    middle = (whole.xy[2:-1, 2] + whole.xy[3:, 2]) / 2
    np.testing.assert_allclose(found.xy[: len(middle), 2], middle)
    assert np.isnan(found.xy[-2:, 2]).all() and found.late[2].tolist() == [2.5, 0]


def test_frames_may_have_gaps(tmp_path):
    """Every second frame, two of them lost; what a late camera showed in these was earlier."""
    make_recording(tmp_path, 16)
    late_files(tmp_path, "front", 4)
    for path in (tmp_path / "openpose").glob("*/*.json"):
        number = int(path.name.split("_")[1])
        if number % 2 or number in (6, 8):
            path.unlink()
    options = settings(tmp_path, "recording.offsets={front: 4}")
    found = bring_in_step(None, reader(options), options)
    make_recording(tmp_path / "whole", 16)
    reference = read_recording(tmp_path / "whole", settings(tmp_path / "whole").recording)
    assert found.frames.tolist() == [0, 2, 4, 10, 12, 14, 16, 18]
    seen = np.isfinite(found.xy[..., 0]).any(-1)  # (T, V)
    # What `front` showed in the frames 6 and 8, lost, was at 2 and 4.
    assert seen[:, 1].tolist() == [True, False, False, True, True, True, False, False]
    for row, frame in enumerate(found.frames):
        for v in np.flatnonzero(seen[row]):
            np.testing.assert_allclose(found.xy[row, v], reference.xy[frame, v])


def test_a_camera_that_saw_nobody_has_no_clock(tmp_path, caplog):
    make_recording(tmp_path, 20)
    for path in (tmp_path / "openpose/front_json").iterdir():
        path.write_text('{"people": []}')
    options = settings(tmp_path, "recording.sync=auto")
    found = bring_in_step(find_model(None, torch.device("cpu")), reader(options), options)
    assert abs(found.late[1, 0]) < 15  # of 150; measured 6
    assert "front +0.00 NOT FOUND" in report.clock_text(found)
    first = found._replace(late=np.array([[0, np.nan], [3.0, 0], [5.0, 0.2], [1.0, np.nan]]))
    text = "than front shows it, used so much earlier: left -3.00 NOT FOUND, right +2.00 +- 0.20"
    assert text in report.clock_text(first)
    for name in NAMES[2:]:
        for path in (tmp_path / f"openpose/{name}_json").iterdir():
            path.write_text('{"people": []}')
    found = bring_in_step(find_model(None, torch.device("cpu")), reader(options), options)
    assert "front in 0, right in 0" in caplog.text and np.isnan(found.late[:, 1]).all()


@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        ("{side: 3}", f"no camera side; there are {', '.join(NAMES)}"),
        ("{front: soon}", "recording.offsets.front: expected frames, a number"),
        ("{front: .nan}", "recording.offsets.front: expected frames, a number"),
        ("{front: 300}", "front and left are 300 frames apart, but the recording has 4 frames"),
    ],
)
def test_offsets_that_make_no_sense(tmp_path, offsets, message):
    make_recording(tmp_path, 4)
    options = settings(tmp_path, f"recording.offsets={offsets}")
    with pytest.raises(UserError, match=message):
        bring_in_step(None, reader(options), options)


def test_clocks_of_a_person_who_stands_still_hardly_move(tmp_path):
    given = out_of_step(2, (0, 0))
    still = given.keypoints.xy[:1] + 2.0 * normal(*given.keypoints.xy.shape, seed=3)
    make_recording(tmp_path, 2)
    options = settings(tmp_path, "recording.sync=auto")
    whole = read_recording(tmp_path, options.recording)
    recording = whole.part([0, 1])._replace(
        frames=np.arange(FRAMES),
        xy=still.numpy(),
        confidence=given.keypoints.confidence.numpy(),
        skeleton=H36M17,
    )
    model = find_model(None, torch.device("cpu"))
    found = bring_in_step(model, lambda late: _shifted(recording, late), options)
    assert abs(found.late[1, 0]) < 15  # of 150; measured 6


def test_a_clock_that_drifts(tmp_path, monkeypatch):
    """A camera that falls behind by a frame in twenty, a fifth late in the middle."""
    make_recording(tmp_path, 2)
    options = settings(tmp_path, "recording.sync=auto")
    whole = read_recording(tmp_path, options.recording)
    moment = np.arange(41.0)
    xy = np.broadcast_to(moment[:, None, None, None], (41, 4, 17, 2)).copy()  # what happened when
    xy[:, 1] = ((moment - 20 - 0.2) / 1.05 + 20)[:, None, None]
    ones = np.ones(xy.shape[:-1])
    recording = whole._replace(
        frames=np.arange(100, 141), xy=xy, confidence=ones, skeleton=H36M17, fps=20.0
    )
    second = torch.eye(4, dtype=torch.float64)[1]
    lags = Lags(0.2 * second, 0.05 * second, 0.1 * second, 0.004 * second)
    monkeypatch.setattr(clocks, "find_lags", lambda *rest: lags)
    ones = np.broadcast_to(np.eye(2), (*ones.shape, 2, 2))
    recording = recording._replace(covariance=ones)
    found = bring_in_step(FakeModel(None), lambda late: recording, options)
    seen = np.isfinite(found.xy)
    assert seen[5:35].all()
    np.testing.assert_allclose(found.xy[seen], np.broadcast_to(xy[:, :1], xy.shape)[seen])
    assert found.late_at(120).tolist() == [0, 0.2, 0, 0] and found.late_at(140)[1] == 1.2
    text = report.clock_text(found)
    front = "front +0.20 +- 0.10 (+0.010 s) and from the first frame to the last +2.00 +- 0.16 more"
    assert front in text and text.count("more") == 1


@pytest.mark.slow
def test_a_minute_at_another_rate():
    """29.97 frames a second beside 30."""
    T, most, late, drift = 1800, 20, 3.3, 0.001
    scene = exact_scene(1, 4, T + 2 * most, 1, noise=0.002, missing=0.05, fps=30.0)
    tracks = Keypoints(*(value[0].double() for value in scene.keypoints))
    second = torch.eye(4, dtype=torch.float64)[1]
    since = torch.arange(T).double()[:, None] - 0.5 * (T - 1)
    at = (since - late * second) / (1 + drift * second) + 0.5 * (T - 1) + most
    given = RigInput(keypoints_at(tracks, at), scene.K[0, :T].double(), H36M17)
    found = find_lags(find_model(None, torch.device("cpu")), given, OPTIONS)
    assert float((found.frames - late * second).abs().max()) < 0.4
    assert float(found.drift[1]) == pytest.approx(drift, abs=3e-4)
    assert float(found.drift[2:].abs().max()) < 3e-4 and (found.drift_std[1:] < 2e-4).all()


def test_videos_are_read_densely_enough():
    videos = [Video(Path(name), 6000, 60.0) for name in "ab"]
    assert len(frame_numbers(videos, 0, None, None)) == 100
    assert frame_numbers(videos, 0, None, None, 6)[:3] == [0, 6, 12]
    assert frame_numbers(videos, 0, 79, None, 6) == list(range(80))
    with pytest.raises(UserError, match=r"recording\.every: 12, .* set it to 6 or less"):
        frame_numbers(videos, 0, None, 12, 6)


def _shifted(recording, late):
    """The recording with cameras (V,) so many frames earlier."""
    if late is None:
        return recording
    xy, confidence = np.full_like(recording.xy, np.nan), np.zeros_like(recording.confidence)
    for v, lag in enumerate(np.rint(late).astype(int)):
        rows = np.arange(len(xy)) + lag
        there = (rows >= 0) & (rows < len(xy))
        xy[there, v], confidence[there, v] = (
            part[rows[there], v] for part in (recording.xy, recording.confidence)
        )
    return recording._replace(xy=xy, confidence=confidence)


@pytest.mark.slow
@pytest.mark.parametrize("lag", [7, 20])
def test_the_sample_recording_out_of_step(lag):
    options = sample_settings(
        "recording.yaml", "run.name=x", "recording.sync=auto", "recording.last_frame=119"
    )
    model, recording, _ = run.observe(options)
    whole = read_recording(options.data.root, options.recording)
    late = whole._replace(xy=whole.xy.copy(), confidence=whole.confidence.copy())
    late.xy[lag:, 1], late.confidence[lag:, 1] = whole.xy[:-lag, 1], whole.confidence[:-lag, 1]
    late.xy[:lag, 1] = np.nan
    found = bring_in_step(model, lambda shift: _shifted(late, shift), options)
    moved = found.late[:, 0] - recording.late[:, 0]
    assert np.abs(moved - [0, lag, 0, 0]).max() < 0.3  # measured 0.15
    assert np.abs(recording.late[:, 0]).max() < 0.5  # the laboratory's cameras run in step
