"""Garments of a folder: checks of the files, the fit, hidden skin, people drawn in them.

What needs the shared garments, the `render` extra or an EGL driver is skipped without.
"""

import numpy as np
import pytest
from render_fixture import GARMENTS, empty_room, person, renderer, take

from ptri.errors import UserError
from ptri.render.draw.smooth import smooth_edges
from ptri.render.people.body import base_vertices, load_base_mesh, load_body_model
from ptri.render.people.garment_files import open_folder, read_arrays
from ptri.render.people.garments import LOWER, UPPER, fit, layer_masks, load_garment
from ptri.render.people.posing import driver_names

needs_garments = pytest.mark.skipif(not GARMENTS.exists(), reason="no shared garments here")
WORN = {"garments": str(GARMENTS), "garment_share": 1.0}


def arrays(**changes) -> dict:
    """A garment of one triangle."""
    values = {
        "vertices": np.eye(3, dtype=np.float32),
        "uv": np.eye(3, 2, dtype=np.float32),
        "ref": np.array([[0, 1, 2]] * 3, np.uint16),
        "weight": np.full((3, 3), 1 / 3, np.float32),
        "offset": np.zeros((3, 3), np.float32),
        "scale_verts": np.array([[0, 1]] * 3, np.uint16),
        "scale_den": np.ones(3, np.float32),
        "delete_verts": np.array([5], np.uint16),
        "faces": np.array([[0, 1, 2]], np.uint16),
        "face_uv": np.array([[0, 1, 2]], np.uint16),
    }
    return {k: v for k, v in (values | changes).items() if v is not None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ref": None}, "array ref is missing"),
        ({"faces": np.array([[0, 1, 3]])}, r"faces points outside of 0\.\.2"),
        ({"ref": np.full((3, 3), 19158)}, "ref points outside"),
        ({"ref": np.array([[0, 1, 2]] * 2)}, "ref has 2 rows for 3 vertices"),
        ({"weight": np.full((3, 3), 0.5)}, "weights do not sum to 1"),
        ({"offset": np.full((3, 3), np.nan)}, "offset holds something else than finite"),
        ({"scale_den": np.zeros(3)}, "scale_den is not positive"),
        ({"uv": np.zeros((3, 3))}, r"uv has shape \(3, 3\)"),
    ],
)
def test_damaged_garments_are_named(tmp_path, changes, message):
    good, bad = tmp_path / "good.npz", tmp_path / "bad.npz"
    np.savez(good, **arrays())
    read_arrays(good)
    np.savez(bad, **arrays(**changes))
    with pytest.raises(UserError, match=rf"bad\.npz.*{message}"):
        read_arrays(bad)


def test_wrong_folders_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"render.garments: .*missing: not a folder"):
        open_folder(str(tmp_path / "missing"))
    with pytest.raises(UserError, match=r"no outfits/\*\.npz"):
        open_folder(str(tmp_path))
    for category in ("outfits", "hair"):
        (tmp_path / category).mkdir()
        np.savez(tmp_path / category / "one.npz", **arrays())
    assert len(open_folder(str(tmp_path)).paths["hair"]) == 1
    open_folder.cache_clear()
    (tmp_path / "hair" / "one.npz").write_bytes(b"not a zip file")
    with pytest.raises(UserError, match=r"one\.npz: not a readable garment file"):
        open_folder(str(tmp_path))


@needs_garments
def test_the_fit_follows_the_binding():
    shape = person(4, **WORN).shape
    rest = base_vertices(shape)
    np.testing.assert_array_equal(rest[load_base_mesh().body], shape.vertices)
    garment = load_garment(GARMENTS / "outfits" / "male_worksuit01.npz")
    fitted = fit(garment, rest)
    for i in range(0, len(fitted), 500):  # MakeHuman's rule, vertex by vertex
        point = sum(garment.weight[i, k] * rest[garment.ref[i, k]] for k in range(3))
        for axis, sign, column in ((0, 1, 0), (1, -1, 2), (2, 1, 1)):
            a, b = garment.scale_verts[column]
            scale = abs(rest[a, axis] - rest[b, axis]) / garment.scale_den[column]
            point[axis] += sign * scale * garment.offset[i, column]
        np.testing.assert_allclose(fitted[i], point, atol=1e-12)
    np.testing.assert_allclose(garment.drivers.sum(1), 1, atol=1e-5)
    # Left and right stay apart: arms move with their own side's drivers.
    left = [i for i, name in enumerate(driver_names()) if "arm01.L" in name]
    share = garment.drivers[:, left].sum(1)
    assert fitted[garment.corners[share > 0.5], 0].min() > 0


@needs_garments
def test_trousers_hide_legs_and_shirts_do_not():
    base, faces = load_base_mesh(), load_body_model().faces
    outfit = load_garment(GARMENTS / "outfits" / "male_casualsuit02.npz")
    middle = base.template[base.body][faces].mean(1)
    thigh = (np.abs(middle[:, 0]) < 0.25) & (middle[:, 2] < -0.15) & (middle[:, 2] > -0.65)
    face = (middle[:, 2] > 0.72) & (middle[:, 1] < 0)
    for classes, legs_hidden in (((LOWER,), True), ((UPPER,), False), ((LOWER, UPPER), True)):
        shown, masks = layer_masks(faces, base.body, [(outfit, classes)])
        assert (shown[thigh].mean() < 0.02) == legs_hidden
        assert shown[face].all()
        drawn = outfit.piece_class[outfit.pieces[outfit.drawn[masks[0]]]]
        assert set(drawn.ravel()) == set(classes)
    # Socks vanish below trousers.
    shoes = load_garment(GARMENTS / "shoes" / "shoes01.npz")
    _, alone = layer_masks(faces, base.body, [(shoes, (UPPER,))])
    _, below = layer_masks(faces, base.body, [(shoes, (UPPER,)), (outfit, (LOWER,))])
    assert alone[0].all() and below[0].mean() < 0.95


@needs_garments
def test_people_in_garments_depend_on_the_seed_only():
    dressed, same = person(4, **WORN).dressed, person.__wrapped__(4, **WORN).dressed
    for name in ("vertices", "faces", "colours", "surface"):
        np.testing.assert_array_equal(getattr(dressed, name), getattr(same, name))
    for first, second in zip(dressed.parts, same.parts):
        assert first.texture.key == second.texture.key and np.array_equal(first.tints, second.tints)
    keys = [[part.texture.key for part in person(n, **WORN).dressed.parts] for n in (4, 5)]
    assert keys[0] != keys[1] and len(dressed.parts) >= 3
    assert person(4, **(WORN | {"garment_share": 0.0})).dressed.parts == ()
    assert dressed.faces.max() < len(dressed.vertices) == len(dressed.surface)
    assert sum(part.count for part in dressed.parts) + dressed.num_shaded == len(dressed.faces)
    # Cloth lies around the body, not beside it.
    gap = np.ptp(dressed.vertices, axis=0) - np.ptp(person(4, **WORN).shape.vertices, axis=0)
    assert np.abs(gap).max() < 0.15


@needs_garments
@pytest.mark.parametrize("worn", [WORN, {}])
def test_the_key_light_falls_on_the_side_it_comes_from(worn):
    dressed, room = person(4, **worn).dressed, empty_room(bare=True)
    dark, key = np.full(3, 0.1), np.ones(3)
    R = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])  # looks along +y at the face
    camera = np.array([[280.0, 0, 80], [0, 280, 80], [0, 0, 1]]), R, -R @ np.array([0, -4, 0.9])
    renderer().set_picture(np.zeros((8, 16, 3), np.uint8))
    brightness = []
    for side in (-1.0, 1.0):
        light = room.look.light._replace(
            light_direction=np.array([0, 0.96 * side, 0.28]),
            light_colour=key,
            fill_colour=0 * key,
            sky_colour=dark,
            ground_colour=dark,
            exposure=1.0,
        )
        lit = room._replace(look=room.look._replace(light=light))
        image, _, (mask,) = take(camera, lit, (dressed, dressed.vertices, dressed.normals))
        brightness.append(image[mask].mean())
    renderer().set_picture(None)
    assert brightness[0] > 1.4 * brightness[1]  # measured: 2.4 to 2.6


@pytest.mark.parametrize("slope", [0.1, 0.7])
def test_edges_are_smoothed_and_flat_parts_kept(slope):
    y, x = np.mgrid[:64, :64]
    distance = x - slope * y - 10
    hard = np.where((distance > 0)[..., None], 220, 30).astype(np.uint8).repeat(3, 2)
    exact = 30 + 190 * np.clip(distance / np.hypot(1, slope) + 0.5, 0, 1)[..., None]
    soft = smooth_edges(hard)
    rms = [np.sqrt(np.square(image - exact).mean()) for image in (hard, soft)]
    assert rms[1] < 0.6 * rms[0]  # measured: 0.42 and 0.47
    far = np.abs(distance) > 6
    np.testing.assert_array_equal(soft[far], hard[far])
