"""Draws people and rooms with OpenGL, without a display (EGL; software where there is no GPU).

One `Renderer` per process; set LP_NUM_THREADS=1 in the environment of software-rendering workers.
World: z up, metres. Images have row 0 at the top and integer coordinates at pixel centres, as
everywhere in ptri.
"""

from __future__ import annotations

from importlib import resources

import cv2
import numpy as np

from ptri.render.draw.figure import Figure, padded, set_uniforms
from ptri.render.draw.smooth import smooth_edges
from ptri.render.people.dressed import Dressed
from ptri.render.stage.room import Room

_NEAR, FAR = 0.15, 60.0  # m
_BACKDROP = ("turn", "tint", "flat_picture", "window")  # what it shows of a `Look`
_SHADOW_SIZE = 512  # px
_SHADOW_REACH = 2.2  # m around the person
_current: list[Renderer] = []  # whose context is the current one


class Renderer:
    """Keeps the OpenGL context, programs and buffers.

    Args:
        width, height: of the images, px.
        samples: of multisample anti-aliasing; 0 turns it off. -1: 4 on a GPU; in software, where
            they would double the time, a filter of the finished picture (`smooth_edges`).

    Raises:
        ImportError: moderngl is not installed (the `render` extra).
        RuntimeError: no EGL driver (on Debian: libegl1 and libgl1-mesa-dri).
    """

    def __init__(self, width: int, height: int, samples: int = -1):
        import moderngl

        self._gl = moderngl
        self.width, self.height = width, height
        try:
            self.context = moderngl.create_standalone_context(backend="egl")
        except Exception as error:  # moderngl raises bare Exception
            raise RuntimeError(
                f"no OpenGL context through EGL: {error}; install an EGL driver (Debian, Ubuntu: "
                "libegl1 libgl1-mesa-dri)"
            ) from error
        _current[:] = [self]
        make = self.context.program
        self._person = make(_source("person.vert"), _source("person.frag"))
        self._garment = make(_source("garment.vert"), _source("garment.frag"))
        self._hair = make(_source("garment.vert"), _source("garment.frag", "CUT"))
        self._room = make(_source("scene.vert"), _source("scene.frag"))
        self._backdrop = make(_BACKDROP_VERTEX, _source("backdrop.frag"))
        self._depth_only = make(_DEPTH_VERTEX, _DEPTH_FRAGMENT)
        self._lit = (self._room, self._person, self._garment, self._hair)
        for program in self._lit:
            set_uniforms(program, {"shadow_map": 1, "noise_map": 2})
        for program in (self._garment, self._hair):
            set_uniforms(program, {"cloth": 3})
        context, size = self.context, (width, height)
        context.front_face = "cw"  # images are drawn upside down
        software = "llvmpipe" in context.info["GL_RENDERER"]
        self._smooth = samples < 0 and software
        if samples < 0:
            samples = 0 if software else 4
        samples = min(samples, context.max_samples)
        self._depth = context.depth_texture(size)
        self._resolved = context.framebuffer([context.renderbuffer(size, 3)], self._depth)
        self._target = self._resolved
        if samples:
            self._target = context.framebuffer(
                [context.renderbuffer(size, 3, samples=samples)],
                context.depth_renderbuffer(size, samples=samples),
            )
        self._shadow = context.depth_texture((_SHADOW_SIZE, _SHADOW_SIZE))
        self._shadow.compare_func = "<="
        self._shadow.filter = (moderngl.LINEAR, moderngl.LINEAR)
        self._shadow_target = context.framebuffer([], self._shadow)
        quad = np.array([[-1, -1], [1, -1], [-1, 1], [1, 1]], np.float32)
        self._quad = context.vertex_array(
            self._backdrop, [(context.buffer(quad.tobytes()), "2f", "corner")]
        )
        noise = _noise_texture()
        self._noise = context.texture(noise.shape[:2], 4, noise.tobytes(), dtype="f2")
        self._picture = None
        self._textures: dict[str, object] = {}
        self._figures: dict[int, Figure] = {}
        self._drawn: list[Figure] = []

    def set_person(self, person: Dressed | None, slot: int = 0) -> None:
        """Uploads what stays the same for a person; None empties the slot.

        Several people are several slots; slot 0 is the one whom the shadow map is centred on.
        """
        self._activate()
        if slot in self._figures:
            self._figures.pop(slot).release()
        if person is not None:
            programs = (self._person, self._garment, self._hair, self._depth_only)
            for texture in (part.texture for part in person.parts):
                if texture.key not in self._textures:
                    size, data = texture.pixels.shape[1::-1], texture.pixels.tobytes()
                    kept = self._textures[texture.key] = self.context.texture(size, 4, data)
                    kept.build_mipmaps()
                    kept.filter = (self._gl.LINEAR_MIPMAP_NEAREST, self._gl.LINEAR)
            self._figures[slot] = Figure(self.context, programs, self._textures, person)

    def set_picture(self, picture: np.ndarray | None) -> None:
        """Sets the backdrop picture, (h, w, 3) uint8 RGB, or none."""
        self._activate()
        if self._picture is not None:
            self._picture.release()
        self._picture = None
        if picture is not None:
            size, data = picture.shape[1::-1], np.ascontiguousarray(picture).tobytes()
            self._picture = self.context.texture(size, 3, data, alignment=1)
            self._picture.repeat_x = True

    def pose(self, people: dict[int, tuple[np.ndarray, np.ndarray]], room: Room) -> None:
        """Uploads posed people and a room, and draws the shadow map of all.

        Args:
            people: slot -> (vertices, normals), (Q, 3) each of the person in that slot, m, world;
                slot 0 first. Slots that are not named are not drawn.
            room: with furniture and lights.
        """
        self._activate()
        context = self.context
        self._drawn = [self._figures[slot] for slot in people]
        for figure, (vertices, normals) in zip(self._drawn, people.values()):
            figure.pose(vertices, normals)
        buffer = context.buffer(np.ascontiguousarray(room.mesh, np.float32).tobytes())
        self._room_array = context.vertex_array(
            self._room, [(buffer, "3f 3f 2f 1f", "position", "normal", "uv", "material")]
        )
        room_depth = context.vertex_array(self._depth_only, [(buffer, "3f 24x", "position")])
        vertices = next(iter(people.values()))[0]
        middle = (vertices.min(0) + vertices.max(0)) / 2
        light = _light_matrix(room.look.light.light_direction, middle)
        context.enable_only(self._gl.DEPTH_TEST)
        if room.look.light.shadow_strength > 0:
            self._shadow_target.use()
            self._shadow_target.clear(depth=1.0)
            set_uniforms(self._depth_only, {"matrix": light.T})
            for figure in self._drawn:
                figure.draw_depth()
            if room.first_caster < len(room.mesh):
                room_depth.render(first=room.first_caster)
        for program in self._lit:
            set_uniforms(program, room.look.light._asdict() | {"light_matrix": light.T})
        colours, styles = padded(room.colours, 32), padded(room.styles, 16)
        catcher = self._picture is not None
        set_uniforms(self._room, {"colours": colours, "styles": styles, "catcher": catcher})
        self._room_buffers = [buffer, self._room_array, room_depth]
        self._look = room.look

    def draw(self, K: np.ndarray, R: np.ndarray, t: np.ndarray) -> np.ndarray:
        """Draws the current person and room from one camera.

        Args:
            K: (3, 3) px; R: (3, 3); t: (3,) m; ``x_cam = R x_world + t``.

        Returns:
            (height, width, 3) uint8 RGB.
        """
        self._activate()
        context = self.context
        matrix = view_projection(K, R, t, self.width, self.height).T
        self._target.use()
        self._target.clear(0.5, 0.5, 0.5, depth=1.0)
        if self._picture is not None:
            context.disable(self._gl.DEPTH_TEST)
            x, y = self.width / 2, self.height / 2
            to_pixel = np.array([[x, 0, x - 0.5], [0, y, y - 0.5], [0, 0, 1]])
            rays = R.T @ np.linalg.inv(K) @ to_pixel
            shown = {name: getattr(self._look, name) for name in _BACKDROP}
            set_uniforms(self._backdrop, {"rays": rays.T, **shown})
            self._picture.use(0)
            self._quad.render(self._gl.TRIANGLE_STRIP)
            context.enable(self._gl.DEPTH_TEST)
        self._shadow.use(1)
        self._noise.use(2)
        for program in self._lit:
            set_uniforms(program, {"view_projection": matrix})
            if program is not self._room:  # nothing of a room shines
                set_uniforms(program, {"eye_position": -R.T @ t})
        for figure in self._drawn:
            figure.draw()
        if self._picture is not None:  # the floor is but a shadow on it
            context.enable(self._gl.BLEND)
        self._room_array.render()  # last, so that what the person hides is not shaded
        context.disable(self._gl.BLEND)
        if self._target is not self._resolved:
            context.copy_framebuffer(self._resolved, self._target)
        data = self._resolved.read(components=3, alignment=1)
        image = np.frombuffer(data, np.uint8).reshape(self.height, self.width, 3)
        return smooth_edges(image) if self._smooth else image

    def person_depth(
        self, K: np.ndarray, R: np.ndarray, t: np.ndarray, slot: int = 0
    ) -> np.ndarray:
        """Depth (height, width) m of one posed person alone, about `FAR` elsewhere; else as `draw`.

        `depth` then is this picture's.
        """
        self._activate()
        matrix = view_projection(K, R, t, self.width, self.height)
        self._resolved.use()
        self._resolved.clear(0.0, 0.0, 0.0, depth=1.0)
        self.context.enable_only(self._gl.DEPTH_TEST)
        set_uniforms(self._depth_only, {"matrix": matrix.T})
        self._figures[slot].draw_depth()
        return self.depth()

    def depth(self) -> np.ndarray:
        """Depth (height, width) float32 m along the optical axis of the last picture drawn.

        `FAR`, the far plane, where there is nothing.
        """
        self._activate()
        data = np.frombuffer(self._depth.read(alignment=1), np.float32)
        data = data.reshape(self.height, self.width)
        return 2 * FAR * _NEAR / (FAR + _NEAR - (2 * data - 1) * (FAR - _NEAR))

    def end_pose(self) -> None:
        """Frees the buffers of the last `pose`."""
        self._activate()
        for item in getattr(self, "_room_buffers", []):
            item.release()
        self._room_buffers = []

    def _activate(self) -> None:
        """Makes the context the current one; it stays so: a change of it waits for the driver."""
        if _current != [self]:
            self.context.__enter__()
            _current[:] = [self]

    def close(self) -> None:
        """Frees the context."""
        if _current == [self]:
            _current.clear()
        self.context.release()


def view_projection(
    K: np.ndarray, R: np.ndarray, t: np.ndarray, width: int, height: int
) -> np.ndarray:
    """(4, 4) world -> clip space; row 0 of the frame buffer is the top row of the image.

    Pixel centres: integer coordinate u is drawn at window coordinate u + 0.5.
    """
    projection = np.zeros((4, 4))
    projection[0, :3] = 2 / width * (K[0] + [0, 0, 0.5]) - [0, 0, 1]
    projection[1, :3] = 2 / height * (K[1] + [0, 0, 0.5]) - [0, 0, 1]
    projection[2, 2] = (FAR + _NEAR) / (FAR - _NEAR)
    projection[2, 3] = -2 * FAR * _NEAR / (FAR - _NEAR)
    projection[3, 2] = 1
    view = np.eye(4)
    view[:3, :3], view[:3, 3] = R, t
    return projection @ view


def _light_matrix(direction: np.ndarray, middle: np.ndarray) -> np.ndarray:
    """Orthographic view (4, 4) along the light onto the person's surroundings."""
    forward = -direction / np.linalg.norm(direction)
    side = np.cross(forward, [0.3, 0.9, 0.1])
    side /= np.linalg.norm(side)
    axes = np.stack([side, np.cross(forward, side), forward])
    matrix = np.eye(4)
    matrix[:3, :3] = axes / np.array([_SHADOW_REACH, _SHADOW_REACH, 6.0])[:, None]
    matrix[:3, 3] = -matrix[:3, :3] @ middle
    return matrix


def _noise_texture() -> np.ndarray:
    """(512, 512, 4) float16, periodic: smooth noise (32 cells), turbulence, slopes."""
    rng = np.random.default_rng(0)

    def layer(cells: int) -> np.ndarray:
        grid = np.pad(rng.random((cells, cells), dtype=np.float32), 3, mode="wrap")
        step = 512 // cells
        fine = cv2.resize(grid, None, fx=step, fy=step, interpolation=cv2.INTER_CUBIC)
        return fine[3 * step : -3 * step, 3 * step : -3 * step]

    smooth = layer(32)
    turbulence = 0.5 * smooth + 0.3 * layer(64) + 0.2 * layer(256)
    slopes = [16 * (np.roll(smooth, -1, axis) - np.roll(smooth, 1, axis)) / 2 for axis in (1, 0)]
    return np.stack([smooth, turbulence, *slopes], -1).astype(np.float16)


def _source(name: str, define: str | None = None) -> str:
    folder = resources.files("ptri.render.draw")
    text = folder.joinpath(f"{name}.glsl").read_text()
    for shared in ("light.glsl", "light.vert.glsl", "pattern.glsl"):
        text = text.replace(f"//#include {shared}", folder.joinpath(shared).read_text())
    return text.replace(f"//#define {define}", f"#define {define}") if define else text


_BACKDROP_VERTEX = """#version 330
in vec2 corner;
out vec2 screen;
void main() { screen = corner; gl_Position = vec4(corner, 0.0, 1.0); }
"""
_DEPTH_VERTEX = """#version 330
uniform mat4 matrix;
in vec3 position;
void main() { gl_Position = matrix * vec4(position, 1.0); }
"""
_DEPTH_FRAGMENT = """#version 330
out vec4 colour;
void main() { colour = vec4(1.0); }
"""
