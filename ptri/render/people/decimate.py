"""Coarser triangles over a subset of a mesh's vertices, for fast software rendering; normals."""

from __future__ import annotations

import hashlib
import heapq
import os
from pathlib import Path

import numpy as np

_LENGTH_SHARE = 1e-3  # of the squared edge length in the cost, so that flat regions thin out evenly
_MIN_COSINE = 0.2  # between a triangle's normal before and after a collapse
_VERSION = b"1"  # of the result; a change of it makes old files of the cache useless
_KEPT_ON_DISK = 4000  # faces; smaller meshes take less than half a second


def decimate(vertices: np.ndarray, faces: np.ndarray, num_faces: int) -> np.ndarray:
    """Collapses edges onto one of their ends, cheapest first (quadric error, Garland 1997).

    Results for large meshes are kept in the user's cache folder, by the content of the mesh, so
    that every process after the first has them at once.

    Args:
        vertices: (P, 3). faces: (F, 3) of a mesh whose open borders are kept.
        num_faces: stop at so many triangles, or when no collapse is possible.

    Returns:
        (G, 3) int32 triangles over the same vertices, G close to `num_faces`.
    """
    if len(faces) < _KEPT_ON_DISK:
        return _collapse(vertices, faces, num_faces)
    content = hashlib.sha256(_VERSION + str((vertices.shape, num_faces)).encode())
    content.update(np.ascontiguousarray(vertices, np.float64).tobytes())
    content.update(np.ascontiguousarray(faces, np.int64).tobytes())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = cache / "ptri" / "thinned" / f"{content.hexdigest()[:32]}.npy"
    try:
        kept = np.load(path, allow_pickle=False)
        if kept.ndim == 2 and kept.shape[1] == 3 and 0 <= kept.min() <= kept.max() < len(vertices):
            return kept.astype(np.int32)
    except (OSError, ValueError, EOFError):  # none yet, or damaged: make it again
        pass
    result = _collapse(vertices, faces, num_faces)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.tmp.npy")
        np.save(temporary, result)
        temporary.replace(path)
    except OSError:  # a read-only home: the next process thins again
        pass
    return result


def _collapse(vertices: np.ndarray, faces: np.ndarray, num_faces: int) -> np.ndarray:
    points = vertices.tolist()
    ring: list[set[int]] = [set() for _ in points]  # faces at each vertex
    triangles = faces.tolist()
    for index, face in enumerate(triangles):
        for vertex in face:
            ring[vertex].add(index)
    quadrics = _quadrics(vertices, faces).tolist()
    border = find_border(faces, len(vertices)).tolist()
    heap: list[tuple[float, int, int, int]] = []
    version = [0] * len(points)

    def push(vertex: int) -> None:
        """Queues the cheapest collapse of a vertex onto a neighbour."""
        if border[vertex]:
            return
        near = {v for f in ring[vertex] for v in triangles[f]}
        near.discard(vertex)
        if not near:
            return
        # In plain numbers: a few times as fast as arrays of half a dozen neighbours.
        x0, y0, z0 = points[vertex]
        xx, xy, xz, x1, yy, yz, y1, zz, z1, one = quadrics[vertex]
        best, onto = float("inf"), -1
        for other in sorted(near):
            x, y, z = points[other]
            square = (x - x0) ** 2 + (y - y0) ** 2 + (z - z0) ** 2
            cost = x * (xx * x + 2 * (xy * y + xz * z + x1)) + y * (yy * y + 2 * (yz * z + y1))
            cost += z * (zz * z + 2 * z1) + one + _LENGTH_SHARE * square**1.5
            if cost < best:
                best, onto = cost, other
        heapq.heappush(heap, (best, version[vertex], vertex, onto))

    for vertex in range(len(points)):
        push(vertex)
    alive = len(triangles)
    while heap and alive > num_faces:
        _, stamp, gone, kept = heapq.heappop(heap)
        if stamp != version[gone] or not ring[gone]:
            continue
        shared = ring[gone] & ring[kept]
        near_gone = {v for f in ring[gone] for v in triangles[f]} - {gone}
        near_kept = {v for f in ring[kept] for v in triangles[f]} - {kept}
        if len(near_gone & near_kept) != 2 or len(shared) != 2:
            continue
        if any(_flips(points, triangles[f], gone, kept) for f in ring[gone] - shared):
            continue
        for f in shared:
            for v in triangles[f]:
                ring[v].discard(f)
            triangles[f] = []
        for f in list(ring[gone]):
            triangles[f][triangles[f].index(gone)] = kept
            ring[kept].add(f)
        ring[gone] = set()
        quadrics[kept] = [a + b for a, b in zip(quadrics[kept], quadrics[gone])]
        alive -= 2
        for v in near_gone:
            version[v] += 1
            push(v)
    return np.array([face for face in triangles if face], np.int32)


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Area-weighted unit normals (P, 3)."""
    corners = vertices[faces]
    flat = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals = np.stack(
        [
            np.bincount(faces.ravel(), np.repeat(flat[:, axis], 3), minlength=len(vertices))
            for axis in range(3)
        ],
        1,
    )
    # 1e-12 guards vertices that belong to no face.
    return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)


def _quadrics(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Sum over a vertex's faces of area-weighted squared plane distances: the upper triangle of
    the symmetric 4 x 4 matrix, (P, 10)."""
    a, b, c = (vertices[faces[:, i]].astype(float) for i in range(3))
    normal = np.cross(b - a, c - a)
    area = np.linalg.norm(normal, axis=1, keepdims=True)
    normal = normal / np.maximum(area, 1e-15)  # guards degenerate triangles
    plane = np.concatenate([normal, -(normal * a).sum(1, keepdims=True)], 1)
    row, column = np.triu_indices(4)
    terms = area * plane[:, row] * plane[:, column]  # (F, 10)
    corner = faces.T.ravel()
    return np.stack([np.bincount(corner, np.tile(value, 3), len(vertices)) for value in terms.T], 1)


def find_border(faces: np.ndarray, num_vertices: int) -> np.ndarray:
    """Vertices (P,) bool on an edge that has only one triangle."""
    edges = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), axis=1)
    unique, count = np.unique(edges, axis=0, return_counts=True)
    border = np.zeros(num_vertices, bool)
    border[unique[count == 1]] = True
    return border


def _flips(points: list[list[float]], face: list[int], gone: int, kept: int) -> bool:
    """Whether a collapse turns a triangle's normal too far."""
    a, b, c = face
    while a != gone:
        a, b, c = b, c, a
    x, y, z = points[b]
    ux, uy, uz = (i - j for i, j in zip(points[c], points[b]))
    # Twice the areas before and after: cross products of the side that stays with the others.
    px, py, pz = points[gone]
    px, py, pz = px - x, py - y, pz - z
    qx, qy, qz = points[kept]
    qx, qy, qz = qx - x, qy - y, qz - z
    px, py, pz = uy * pz - uz * py, uz * px - ux * pz, ux * py - uy * px
    qx, qy, qz = uy * qz - uz * qy, uz * qx - ux * qz, ux * qy - uy * qx
    size = (px * px + py * py + pz * pz) * (qx * qx + qy * qy + qz * qz)
    return px * qx + py * qy + pz * qz < _MIN_COSINE * size**0.5
