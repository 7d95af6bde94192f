"""The buffers and drawing of one dressed person, for `ptri.render.draw.gl.Renderer`."""

from __future__ import annotations

import numpy as np

from ptri.render.people.dressed import Dressed, Part
from ptri.render.people.garments import MAX_PIECES


class Figure:
    """A dressed person on the graphics card.

    Args:
        programs: of the body, of cloth, of hair, and of depth only.
        textures: key -> texture, of the person's parts.
    """

    def __init__(self, context, programs, textures: dict, person: Dressed):
        self._context, self._textures, self._person = context, textures, person
        self._program, self._garment, self._hair, depth_only = programs
        self._posed = context.buffer(reserve=len(person.vertices) * 24, dynamic=True)
        fixed = [person.vertices, person.layers, person.eyes, person.surface]
        fixed = np.column_stack(fixed).astype(np.float32)
        static = context.buffer(np.ascontiguousarray(fixed).tobytes())
        index = context.buffer(np.ascontiguousarray(person.faces, np.int32).tobytes())
        posed = (self._posed, "3f 3f", "position", "normal")
        body = [posed, (static, "3f 4f 1f 12x", "pattern", "layers", "eye")]
        cloth = [posed, (static, "3f 20x 3f", "pattern", "surface")]
        self._array = context.vertex_array(self._program, body, index)
        self._cloth = context.vertex_array(self._garment, cloth, index)
        self._locks = context.vertex_array(self._hair, cloth, index)
        self._depth = context.vertex_array(depth_only, [(self._posed, "3f 12x", "position")], index)
        arrays = [self._array, self._cloth, self._locks, self._depth]
        self._buffers = [self._posed, static, index, *arrays]

    def pose(self, vertices: np.ndarray, normals: np.ndarray) -> None:
        """Uploads posed vertices and normals (Q, 3), m, world."""
        stacked = np.empty((len(vertices), 6), np.float32)
        stacked[:, :3], stacked[:, 3:] = vertices, normals
        self._posed.write(stacked)

    def draw(self) -> None:
        """Draws the person with the programs' current view and light."""
        person, context = self._person, self._context
        for part in person.parts:  # clothes first, so that what they hide is not shaded
            if not part.cut:
                self._draw_part(part, self._cloth, self._garment)
        context.enable(context.CULL_FACE)  # all else is seen from both sides
        names = ("colours", "styles", "face", "tucked", "painted_brows")
        set_uniforms(self._program, {name: getattr(person, name) for name in names})
        self._array.render(vertices=3 * person.num_closed)
        context.disable(context.CULL_FACE)
        shells = person.num_shaded - person.num_closed
        if shells:
            self._array.render(first=3 * person.num_closed, vertices=3 * shells)
        for part in person.parts:
            if part.cut:
                self._draw_part(part, self._locks, self._hair)

    def _draw_part(self, part: Part, array, program) -> None:
        if part.count == 0:
            return
        self._textures[part.texture.key].use(3)
        values = {
            "colours": padded(part.colours, 2 * MAX_PIECES),
            "styles": padded(part.styles, MAX_PIECES),
            "tints": padded(part.tints.transpose(0, 2, 1), 3 * MAX_PIECES),
            "fold": 0.0 if part.cut else 0.25,
        }
        set_uniforms(program, values)
        array.render(first=3 * part.first, vertices=3 * part.count)

    def draw_depth(self) -> None:
        """Draws the shape only, with the depth program's current matrix."""
        self._depth.render()

    def release(self) -> None:
        """Frees the buffers."""
        for item in reversed(self._buffers):
            item.release()


def set_uniforms(program, values: dict) -> None:
    """Sets a program's numbers, flags and arrays; OpenGL stores matrices by column."""
    for name, value in values.items():
        if isinstance(value, np.ndarray):
            program[name].write(value.astype("f4").tobytes())
        else:
            program[name].value = value


def padded(values: np.ndarray, rows: int) -> np.ndarray:
    """Values (..., k) as (rows, k) float32, filled up with zeros, as shaders' arrays want them."""
    out = np.zeros((rows, values.shape[-1]), np.float32)
    flat = values.reshape(-1, values.shape[-1])
    out[: len(flat)] = flat
    return out
