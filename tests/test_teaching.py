"""What a 2D network is taught beside heatmaps: the trunk's orientation, a teacher's features."""

import pytest
import torch
from h36m_fixture import STANDING, make_tiny_h36m

from ptri import checkpoint, config
from ptri.config import ModelConfig
from ptri.errors import UserError
from ptri.models import mobileone
from ptri.models.mobileone import Backbone
from ptri.models.network2d import Network2D
from ptri.models.weights import read_network2d
from ptri.training import engine
from ptri.training.imitation import Imitation
from ptri.training.orientation import Orientation, trunk_frame
from ptri.training.task2d import HeatmapTask

OTHER = "tf_efficientnet_lite0"  # small, and normalised in its own way


def standing(turn=0.0):
    """(17, 3) mm, camera frame: upright, facing the camera, turned by rad about the vertical."""
    joints = torch.tensor(STANDING * [1, -1, -1], dtype=torch.float32)
    c, s = torch.cos(torch.tensor(turn)), torch.sin(torch.tensor(turn))
    spin = torch.tensor([[c, 0, s], [0, 1, 0], [-s, 0, c]])
    return joints @ spin.T + torch.tensor([0.0, 0.0, 4000.0])


def test_trunk_of_somebody_who_faces_the_camera_and_who_turns_away():
    frame = trunk_frame(standing())  # left, up, forward
    assert frame.tolist() == [[1, 0, 0], [0, -1, 0], [0, 0, -1]]  # left is right in the image
    about_face = torch.tensor([[-1.0, 0, 0], [0, -1, 0], [0, 0, 1]])
    torch.testing.assert_close(trunk_frame(standing(torch.pi)), about_face)


def test_orientation_counts_pixels_on_the_person_only():
    task = Orientation([4, 4, 9, 9])
    for layer in task.maps:
        with torch.no_grad():
            layer.weight.copy_(torch.eye(9)[..., None, None])
            layer.bias.zero_()
    task.requires_grad_(False)
    joints = torch.stack([standing(), standing(0.7)])
    truth = trunk_frame(joints).flatten(1)[:, :, None, None]
    maps = [None, None, truth.repeat(1, 1, 8, 8), truth.repeat(1, 1, 4, 4)]
    xy = torch.rand(2, 17, 2) * 40 + 10  # px of 128, in the first two rows and columns of 4 x 4
    assert float(task(maps, joints, xy, 128).abs().max()) < 1e-12
    maps[3][:, :, 3, 3] += 100.0  # off the person
    maps[2][:, :, :, 5] += 100.0
    assert float(task(maps, joints, xy, 128).abs().max()) < 1e-12
    maps[3][0, :, 0, 0] += 1.0  # on the first person
    found = task(maps, joints, xy, 128)
    assert float(found[0]) > 0.2 and float(found[1]) < 1e-12
    silent = [None, None, torch.zeros(2, 9, 8, 8), torch.zeros(2, 9, 4, 4)]
    torch.testing.assert_close(task(silent, joints, xy, 128), torch.ones(2))  # nothing is told
    assert torch.isfinite(task(silent, joints, xy - 500.0, 128)).all()  # out of the image


def test_imitation_of_oneself_leaves_nothing_and_of_another_is_learned():
    torch.manual_seed(0)
    teacher = Network2D(ModelConfig()).eval()
    images = torch.randn(8, 3, 64, 64)
    same = Imitation(teacher.backbone.channels, teacher)
    detection = teacher(images)
    same(images, detection)  # measures mean and variance
    with torch.no_grad():
        for level, layer in enumerate(same.maps):
            mean, variance = getattr(same, f"mean{level}"), getattr(same, f"variance{level}")
            gain = (variance + 1e-5).rsqrt()
            layer.weight.copy_(torch.diag(gain)[..., None, None])
            layer.bias.copy_(-mean * gain)
    assert float(same(images, detection).detach().max()) < 1e-3
    assert not any("teacher" in name for name in same.state_dict())
    assert not any(p.requires_grad for p in teacher.backbone.parameters())

    student = Network2D(ModelConfig()).train()
    lesson = Imitation(student.backbone.channels, teacher)
    optimizer = torch.optim.Adam([*student.parameters(), *lesson.parameters()], 3e-3)
    losses = []
    for _ in range(25):
        loss = lesson(images, student(images)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.75 * losses[1], losses  # measured 0.47


def test_another_backbone_sees_images_in_its_own_normalisation():
    own = Backbone(OTHER).eval()
    assert own.channels == [24, 40, 112, 320] and not own.plain
    image = torch.rand(1, 3, 64, 64)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    ours = (image - mean[:, None, None]) / std[:, None, None]
    with torch.no_grad():
        for a, b in zip(own(ours), own.body((image - 0.5) / 0.5)):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_backbone_without_the_maps_and_a_wrong_file(tmp_path):
    with pytest.raises(UserError, match=r"vit_tiny.*strides"):
        Backbone("vit_tiny_patch16_224")
    path = tmp_path / "w.pth"
    torch.save({"weight": torch.zeros(3)}, path)
    with pytest.raises(UserError, match=r"pretrained_file: .*w\.pth.*timm"):
        Backbone(OTHER, pretrained=True, weights=str(path))
    full = mobileone.timm.create_model(OTHER)
    torch.save(full.state_dict(), path)
    read = Backbone(OTHER, pretrained=True, weights=str(path))
    assert torch.equal(read.body.conv_stem.weight, full.conv_stem.weight)


def test_taught_run_resumes_and_ships_the_network_alone(tmp_path):
    make_tiny_h36m(tmp_path / "h36m", num_frames=2, size=96)
    common = [
        f"run.out={tmp_path}", "run.device=cpu", "run.threads=1", f"data.root={tmp_path / 'h36m'}",
        "data.train_subjects=[1]", "data.test_subjects=[9]", "data.image_size=64",
        "data.workers=0", "train.batch_size=4", "train.steps_per_epoch=2", "evaluate.pictures=0",
    ]  # fmt: skip

    def train(*settings, resume=False):
        engine.fit(HeatmapTask(config.load(None, [*common, *settings])), resume)

    train("run.name=teacher", f"model.backbone={OTHER}", "train.epochs=1")
    taught = ["run.name=taught", f"init.teacher_2d={tmp_path / 'teacher' / 'best.pt'}",
              "train.weight_orientation=1.0"]  # fmt: skip
    train(*taught, "train.epochs=1")
    train(*taught, "train.epochs=2", resume=True)
    log = (tmp_path / "taught" / "metrics.jsonl").read_text()
    assert "loss/imitation" in log and "loss/orientation" in log
    path = tmp_path / "taught" / "last.pt"
    saved = checkpoint.load(path)["ema"]
    assert any(name.startswith("imitation.") for name in saved)
    weights, meta = checkpoint.load_weights(path)
    assert meta["step"] == 4
    network, size = read_network2d(path)
    assert size == 64 and set(weights) == set(network.state_dict())
    assert not any(isinstance(m, (Imitation, Orientation)) for m in network.modules())
