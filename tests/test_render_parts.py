"""Parts of the renderer that need neither Anny nor OpenGL."""

import dataclasses

import cv2
import numpy as np
import pytest
import render_people
from scipy.spatial import ConvexHull

from ptri.errors import UserError
from ptri.render.clips import sample_rig
from ptri.render.draw import sensor as sensors
from ptri.render.draw.gl import view_projection
from ptri.render.people.decimate import decimate, vertex_normals
from ptri.render.people.person import make_rng
from ptri.render.people.wardrobe import sample_colours, sample_outfit
from ptri.render.settings import RenderConfig, settings_from
from ptri.render.stage import backdrops
from ptri.render.stage import room as rooms
from ptri.render.stage.cameras import Camera


def sphere(rings: int = 24, around: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """A closed unit sphere of triangles that face outwards: the hull of its points."""
    polar, turn = np.meshgrid(
        np.linspace(0, np.pi, rings + 1)[1:-1], np.linspace(0, 2 * np.pi, around, endpoint=False)
    )
    around_axis = [np.sin(polar) * np.cos(turn), np.sin(polar) * np.sin(turn), np.cos(polar)]
    vertices = np.concatenate([np.stack(around_axis, -1).reshape(-1, 3), [[0, 0, 1], [0, 0, -1]]])
    faces = ConvexHull(vertices).simplices
    inwards = np.linalg.det(vertices[faces]) < 0
    faces[inwards] = faces[inwards][:, ::-1]
    return vertices, faces


def test_decimation_keeps_the_shape_closed():
    vertices, faces = sphere()
    coarse = decimate(vertices, faces, 400)
    assert 350 < len(coarse) <= 401 < len(faces)
    edges = np.sort(np.concatenate([coarse[:, [0, 1]], coarse[:, [1, 2]], coarse[:, [2, 0]]]), 1)
    assert np.all(np.unique(edges, axis=0, return_counts=True)[1] == 2)
    # Inscribed polyhedron of 400 faces: measured 0.963 of the fine one's volume.
    volume, fine = (np.linalg.det(vertices[mesh]).sum() for mesh in (coarse, faces))
    assert 0.93 < volume / fine < 1.001
    np.testing.assert_array_equal(coarse, decimate(vertices, faces, 400))
    normals = vertex_normals(vertices, faces)
    assert np.einsum("ni,ni->n", normals, vertices).min() > 0.99


def test_view_projection_follows_the_pixel_convention():
    rng = np.random.default_rng(0)
    K = np.array([[300.0, 0, 70], [0, 310, 60], [0, 0, 1]])
    t, points = np.array([0.1, -0.2, 3]), rng.normal(0, 0.3, (20, 3))
    pixel = Camera(K, np.eye(3), t).project(points)[:, :2]
    clip = np.c_[points, np.ones(20)] @ view_projection(K, np.eye(3), t, 160, 120).T
    window = (clip[:, :2] / clip[:, 3:] + 1) / 2 * [160, 120]
    np.testing.assert_allclose(window - 0.5, pixel, atol=1e-9)
    assert np.all(np.abs(clip[:, 2] / clip[:, 3]) < 1)


@pytest.mark.parametrize("rig", ["h36m_ring", "dome", "ring+random"])
@pytest.mark.parametrize("tight", [False, True])
def test_rigs_see_the_space_around_the_origin(rig, tight):
    settings = settings_from({"rig": rig, "cameras": 4, "size": 300, "tight": tight, "reach": 0.8})
    sampled = sample_rig(settings, 1)
    x, y, z = np.meshgrid([-560, 560], [-560, 560], [0, 2100])
    corners = np.stack([x.ravel(), y.ravel(), z.ravel()], 1)  # inside the cylinder of the reach
    placed = np.stack([Camera(*view).project(corners) for view in zip(*sampled)])
    pixel, depth = placed[..., :2], placed[..., 2]
    assert depth.min() > 0 and pixel.min() > -0.5 and pixel.max() < 299.5
    assert np.ptp(pixel, axis=1).max(1).min() > (120 if tight else 80)  # and not from afar
    again, other = sample_rig(settings, 1), sample_rig(settings, 2)
    np.testing.assert_array_equal(sampled.K, again.K)
    assert np.abs(sampled.t - other.t).max() > 100


def test_rooms_hold_cameras_and_leave_the_person_free():
    cameras = np.array([[4.0, 1, 1.5], [-3, 2, 1.2], [0.5, -4, 2.5]])
    kinds = set()
    for seed in range(30):
        room = rooms.sample_room(make_rng(seed), cameras, RenderConfig(clutter=12))
        points, material = room.mesh[:, :3], room.mesh[:, 8].astype(int)
        assert np.all(np.abs(cameras[:, :2]).max(0) < points[:, :2].max(0))
        assert points[:, 2].max() > cameras[:, 2].max()
        assert material.max() < len(room.colours) == len(room.styles) <= rooms.MAX_MATERIALS
        furniture = points[room.first_caster :]
        if len(furniture):
            assert np.linalg.norm(furniture[:, :2], axis=1).min() > 1.0
        kinds.add(len(furniture))
        assert np.isclose(np.linalg.norm(room.look.light.light_direction), 1)
        assert room.look.light.light_direction[2] > 0
    assert len(kinds) > 3
    bare = rooms.sample_room(make_rng(1), cameras, RenderConfig(), bare=True)
    assert np.all(bare.mesh[: bare.first_caster, 2] == 0)
    joints = np.tile([0.2, 0.1, 0.55], (17, 1))
    joints[[2, 3], 0] += [-0.1, 0.1]
    seat = rooms.with_seat(room, joints)
    stool = seat.mesh[len(room.mesh) :, :3]
    assert np.isclose(stool[:, 2].max(), 0.45) and np.isclose(stool[:, 2].min(), 0)


def test_sensor_keeps_pictures_and_depends_on_the_seed():
    image = np.tile(np.arange(64, dtype=np.uint8)[:, None, None] * 3 + 20, (1, 64, 3))
    plain = RenderConfig(sensor=0.0, metering=0.0, shake=0.0, jpeg=0.0)
    perfect = sensors.sample_sensor(make_rng(0), plain)
    kept = sensors.expose(image, perfect, make_rng(1)).astype(int)
    np.testing.assert_allclose(kept, image, atol=1)
    sensor = sensors.sample_sensor(make_rng(3), dataclasses.replace(plain, sensor=1.0))
    sensor = sensor._replace(gain=np.ones(3), gamma=1.0)
    first, same, other = (sensors.expose(image, sensor, make_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(first, same) and not np.array_equal(first, other)
    assert abs(first.astype(float).mean() - image.mean()) < 2


def test_outfits_vary_and_stay_in_range():
    rng = make_rng(5)
    skirts = [np.mean([sample_outfit(g, rng).skirt > 0 for _ in range(200)]) for g in (0.0, 1.0)]
    assert skirts[0] == 0 and 0.15 < skirts[1] < 0.55
    colours, styles = sample_colours(rng)
    assert colours.shape == (6, 2, 3) and colours.min() >= 0 and colours.max() <= 1
    assert styles.shape == (6, 4)


def test_pictures_of_a_folder(tmp_path):
    for folder, message in ((tmp_path / "missing", "not a folder"), (tmp_path, r"no \.jpg")):
        with pytest.raises(UserError, match=message):
            backdrops.list_pictures(folder)
    cv2.imwrite(str(tmp_path / "panorama.png"), np.zeros((20, 40, 3), np.uint8))
    cv2.imwrite(str(tmp_path / "photo.jpg"), np.zeros((30, 40, 3), np.uint8))
    paths = backdrops.list_pictures(tmp_path)
    assert [backdrops.read_picture(path)[1] for path in paths] == [False, True]
    (tmp_path / "photo.jpg").write_bytes(b"no picture")
    backdrops.read_picture.cache_clear()
    with pytest.raises(UserError, match="not a readable picture"):
        backdrops.read_picture(paths[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": 0}, "render.frames: 0"),
        ({"actions": "Flying-1"}, "--actions Flying-1: unknown"),
        ({"rig": "ringg"}, "--rig"),
        ({"rig": "dome+ring", "cameras": 3}, "not a multiple"),
        ({"near": 5, "far": 2}, "render.near: 5.0 is above"),
    ],
)
def test_bad_settings_name_the_key(change, message):
    with pytest.raises(UserError, match=message):
        settings_from(change)


def test_settings_read_lists_and_booleans():
    settings = settings_from({"subjects": "S1,S9", "tight": "true", "cameras": "6"})
    assert settings.subjects == ("S1", "S9") and settings.tight and settings.cameras == 6
    assert settings.camera_names[:4] == ("54138969", "55011271", "58860488", "60457274")
    assert len(set(settings.camera_names)) == 6


def test_the_script_fails_in_one_line(capsys):
    assert render_people.main(["--cameras", "x"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: command line: render.cameras: 'x'; expected a whole number")


def test_thinned_meshes_are_kept_and_damaged_ones_made_again(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    vertices, faces = sphere(60, 60)
    first = decimate(vertices, faces, 2000)
    (kept,) = (path for path in tmp_path.rglob("*") if path.is_file())
    np.testing.assert_array_equal(decimate(vertices, faces, 2000), first)
    kept.write_bytes(kept.read_bytes()[:100])
    np.testing.assert_array_equal(decimate(vertices, faces, 2000), first)
