"""MoveNet in PyTorch against the original graphs; what its peaks say of its errors."""

import json

import convert_movenet
import numpy as np
import pytest
import torch
from movenet_fixture import DEMO, OUTPUTS, PHOTOS, ROOT, drawn_pictures, photographs

from ptri import checkpoint, config
from ptri.data import transforms
from ptri.detectors.build import build_detector, detector_name
from ptri.detectors.movenet import THUNDER, MoveNet, MoveNetDetector
from ptri.detectors.multipose import MULTIPOSE, Multipose, load_multipose
from ptri.detectors.peaks import (
    PeakErrors,
    Peaks,
    fit_peak_errors,
    peak_covariance,
    peak_moments,
    read_peak_errors,
)
from ptri.errors import UserError
from ptri.models.weights import model_settings
from ptri.skeleton import COCO17

GRAPHS = PHOTOS.parent / "movenet"
SHIPPED = {"thunder": THUNDER, "multipose": MULTIPOSE}
RECORDED = json.loads(OUTPUTS.read_text())


def loaded(model, path):
    checkpoint.initialise(model.network, path)
    return model.eval()


@pytest.fixture(scope="module")
def thunder():
    return loaded(MoveNet(), THUNDER)


@pytest.fixture(scope="module")
def multipose():
    return loaded(Multipose(), MULTIPOSE)


def as_batch(picture):
    return torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None].float()


@torch.no_grad()
def disagreement(models, pictures):
    """Largest differences from the recorded outputs: keypoints px, boxes px, scores."""
    px, scores = [], []
    for name, model, picture in pictures:
        found = models[model](as_batch(picture))
        size = np.array(picture.shape[1::-1])
        recorded = np.array(RECORDED[name])
        if model == "thunder":
            y, x, score = recorded.reshape(17, 3).T
            said = found.height[0]
        else:
            people = recorded.reshape(6, 56)
            y, x, score = np.moveaxis(people[:, :51].reshape(6, 17, 3), -1, 0)
            said = found.confidence[0]
            boxes = people[:, [52, 51, 54, 53]] * np.tile(size, 2)
            px.append(np.abs(found.boxes[0].numpy() - boxes).max())
            scores.append(np.abs(found.scores[0].numpy() - people[:, 55]).max())
        xy = np.stack([x, y], -1) * size - 0.5
        px.append(np.linalg.norm(found.xy[0].numpy() - xy, axis=-1).max())
        scores.append(np.abs(said.numpy() - score).max())
    return max(px), max(scores)


def test_outputs_are_those_of_the_original_graphs(thunder, multipose):
    models = {"thunder": thunder, "multipose": multipose}
    px, score = disagreement(models, drawn_pictures())
    # Measured: 1.5e-4 px, 6e-6; float32 sums in another order.
    assert px < 0.01 and score < 1e-4


def test_padding_as_in_pytorch_would_be_found_out():
    model = loaded(MoveNet(), THUNDER)
    for module in model.modules():
        if getattr(module, "pad", None):
            module.pad = (1, 0, 1, 0)
    px, _ = disagreement({"thunder": model}, list(drawn_pictures())[:1])
    assert px > 0.5


@pytest.mark.skipif(not PHOTOS.exists(), reason="the shared photographs are not here")
def test_outputs_on_photographs_are_those_of_the_original_graphs(thunder, multipose):
    px, score = disagreement({"thunder": thunder, "multipose": multipose}, photographs())
    assert px < 0.01 and score < 1e-4


@pytest.mark.skipif(not GRAPHS.exists(), reason="the original graphs are not here")
@pytest.mark.parametrize("model", ["thunder", "multipose"])
def test_the_shipped_weights_are_the_graphs_own(model, tmp_path, capsys):
    target = tmp_path / "made.pt"
    assert convert_movenet.main([model, str(GRAPHS / f"movenet-{model}.json"), str(target)]) == 0
    made, shipped = (checkpoint.load_weights(path)[0] for path in (target, SHIPPED[model]))
    assert made.keys() == shipped.keys()
    assert all(torch.equal(made[name], shipped[name]) for name in made)
    # The other one's graph, and a file that is none.
    other = GRAPHS / f"movenet-{'thunder' if model == 'multipose' else 'multipose'}.json"
    for path, words in ((other, "not ("), (PHOTOS / "persons.json", "not a TensorFlow.js")):
        assert convert_movenet.main([model, str(path), str(target)]) == 2
        assert words in capsys.readouterr().err


def test_a_picture_is_told_alike_alone_and_among_others(thunder, multipose):
    pictures = {name: picture for name, _, picture in drawn_pictures()}
    several = [as_batch(pictures[f"demo{number}"]) for number in range(3)]
    for model in (thunder, multipose):
        with torch.no_grad():
            together = model(torch.cat(several))
            for number, alone in enumerate(several):
                for mine, other in zip(model(alone), together):
                    torch.testing.assert_close(mine[0], other[number], rtol=1e-4, atol=2e-3)


def test_several_persons_are_told_apart(multipose):
    picture = next(p for name, _, p in drawn_pictures() if name == "three beside each other")
    with torch.no_grad():
        found = multipose(as_batch(picture))
    assert (found.scores[0] > 0.3).tolist() == [True] * 3 + [False] * 3
    middles = found.boxes[0, :3, [0, 2]].mean(1)
    assert sorted((middles // 256).tolist()) == [0, 1, 2]


# --- what peaks say of errors ------------------------------------------------------------------


def some_peaks(count, seed):
    """Peaks of two joints, and errors that follow from them by known numbers."""
    draw = torch.Generator().manual_seed(seed)
    height = torch.rand(count, 2, generator=draw) * 0.8 + 0.1
    angle = torch.rand(count, 2, generator=draw) * torch.pi
    axis = torch.stack([angle.cos(), angle.sin()], -1)
    moments = 20.0 * torch.eye(2) + 60.0 * axis[..., None] * axis[..., None, :]
    xy = 128 + 40 * torch.randn(count, 2, 2, generator=draw)
    peaks = Peaks(xy, height, moments, xy + 10 * torch.rand(count, 2, 2, generator=draw))
    errors = PeakErrors((0.5, -1.5, 0.5, 0.2), (0.0,) * 4, (0.4, -0.4), 0.7)
    factor = torch.linalg.cholesky(peak_covariance(peaks, 256, errors)[0])
    off = (factor @ torch.randn(count, 2, 2, 1, generator=draw))[..., 0]
    return peaks, xy + off, errors


def test_fitted_ellipses_hold_what_they_say():
    peaks, truth, errors = some_peaks(3000, 0)
    fitted = fit_peak_errors(peaks, truth, 256)
    covariance, confidence = peak_covariance(peaks, 256, fitted)
    off = (truth - peaks.xy)[..., None]
    square = (off.mT @ covariance.inverse() @ off).flatten()
    for level in (0.5, 0.9):
        within = (square < -2 * np.log(1 - level)).float().mean().item()
        assert within == pytest.approx(level, abs=0.02)
    assert fitted.log_variance == pytest.approx(errors.log_variance, abs=0.25)
    assert fitted.joints == pytest.approx(errors.joints, abs=0.06)
    assert fitted.shape == pytest.approx(errors.shape, abs=0.06)
    right = (off.norm(dim=(-2, -1)) < 0.05 * 256).float()
    assert confidence.mean().item() == pytest.approx(right.mean().item(), abs=0.01)
    # A crop of twice the size has twice the errors.
    larger = Peaks(2 * peaks.xy, peaks.height, 4 * peaks.moments, 2 * peaks.expected)
    torch.testing.assert_close(peak_covariance(larger, 512, fitted)[0], 4 * covariance)


def test_moments_follow_the_peak():
    heat = torch.zeros(1, 2, 16, 16)
    heat[0, 0, 5, 3:8] = 1.0  # along x
    heat[0, 1, 0, 0] = 1.0  # one cell, in the corner
    moments = peak_moments(heat, torch.tensor([[5 * 16 + 5, 0]]))[0]
    torch.testing.assert_close(moments[0], torch.diag(torch.tensor([2 + 1 / 12, 1 / 12])))
    torch.testing.assert_close(moments[1], torch.eye(2) / 12)


def test_the_shipped_detector_on_rendered_people():
    """COCO's joints, covariances and confidences in the crops' px; numbers are docs/photos.md's."""
    options = config.load(None, ["run.name=x", "data.kind=videos", "data.root=x"])
    assert detector_name(options) == "movenet"
    detector = build_detector(options)
    assert detector.skeleton is COCO17 and detector.image_size == 256
    images = [transforms.read_image(ROOT / path, 2)[:, :, ::-1] for path in DEMO]
    said = detector(torch.stack([transforms.normalise(image) for image in images]))
    assert said.xy.shape == (6, 17, 2) and said.covariance.shape == (6, 17, 2, 2)
    assert bool((torch.linalg.eigvalsh(said.covariance) > 0).all())
    assert 0.5 < said.confidence.mean() < 1.0
    # The same peaks as of the pictures themselves, though normalised in between.
    with torch.no_grad():
        whole = detector.movenet(torch.cat([as_batch(image) for image in images]))
    torch.testing.assert_close(said.xy, whole.xy, rtol=0, atol=0.02)


def test_weights_that_are_none_of_its_own_are_one_clear_line(tmp_path):
    with pytest.raises(UserError, match=r"multipose.pt: no weights of movenet_thunder; expected"):
        MoveNetDetector(MULTIPOSE)
    with pytest.raises(UserError, match=r"thunder.pt: no weights of movenet_multipose; expected"):
        load_multipose(THUNDER)
    assert model_settings(THUNDER, checkpoint.load_weights(THUNDER)[1]) == {}  # none of ours
    weights, meta = checkpoint.load_weights(THUNDER)
    path = tmp_path / "without.pt"
    checkpoint.save_weights(path, weights, {**meta, "peaks": {"shape": 2.0}})
    with pytest.raises(UserError, match=r"without.pt: meta: peaks: expected log_variance"):
        MoveNetDetector(path)
    good = read_peak_errors(meta, 17, THUNDER)
    assert 0 <= good.shape <= 1 and len(good.joints) == 17


def test_weights_that_nobody_would_read_are_refused():
    ours = ["run.name=x", "detector.name=ours", "detector.weights=mine.pt"]
    with pytest.raises(UserError, match=r"detector.weights: mine.pt, .*init.checkpoint_2d"):
        build_detector(config.load(None, ours))


def test_a_misspelt_detector_is_one_clear_line():
    with pytest.raises(UserError, match=r"detector.name.*movnet.*movenet"):
        config.load(None, ["run.name=x", "detector.name=movnet"])
