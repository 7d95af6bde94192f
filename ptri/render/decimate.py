"""Coarser triangles over a subset of a mesh's vertices, for fast software rendering; normals."""

from __future__ import annotations

import heapq

import numpy as np

_LENGTH_SHARE = 1e-3  # of the squared edge length in the cost, so that flat regions thin out evenly
_MIN_COSINE = 0.2  # between a triangle's normal before and after a collapse


def decimate(vertices: np.ndarray, faces: np.ndarray, num_faces: int) -> np.ndarray:
    """Collapses edges onto one of their ends, cheapest first (quadric error, Garland 1997).

    Args:
        vertices: (P, 3). faces: (F, 3) of a mesh whose open borders are kept.
        num_faces: stop at so many triangles, or when no collapse is possible.

    Returns:
        (G, 3) int32 triangles over the same vertices, G close to `num_faces`.
    """
    points = vertices.tolist()
    ring: list[set[int]] = [set() for _ in points]  # faces at each vertex
    triangles = [list(map(int, face)) for face in faces]
    for index, face in enumerate(triangles):
        for vertex in face:
            ring[vertex].add(index)
    quadrics = _quadrics(vertices, faces)
    border = find_border(faces, len(vertices))
    heap: list[tuple[float, int, int, int]] = []
    version = [0] * len(points)

    def push(vertex: int) -> None:
        """Queues the cheapest collapse of a vertex onto a neighbour."""
        if border[vertex]:
            return
        near = sorted({v for f in ring[vertex] for v in triangles[f]} - {vertex})
        if not near:
            return
        target = vertices[near]
        lifted = np.concatenate([target, np.ones((len(near), 1))], 1)
        cost = ((lifted @ quadrics[vertex]) * lifted).sum(1)
        cost += _LENGTH_SHARE * ((target - vertices[vertex]) ** 2).sum(1) ** 1.5
        best = int(cost.argmin())
        heapq.heappush(heap, (float(cost[best]), version[vertex], vertex, near[best]))

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
        quadrics[kept] += quadrics[gone]
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
    """Sum over a vertex's faces of area-weighted squared plane distances, (P, 4, 4)."""
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    normal = np.cross(b - a, c - a)
    area = np.linalg.norm(normal, axis=1, keepdims=True)
    normal = normal / np.maximum(area, 1e-15)  # guards degenerate triangles
    plane = np.concatenate([normal, -(normal * a).sum(1, keepdims=True)], 1)
    each = area[..., None] * plane[:, :, None] * plane[:, None]
    quadrics = np.zeros((len(vertices), 4, 4))
    for corner in range(3):
        np.add.at(quadrics, faces[:, corner], each)
    return quadrics


def find_border(faces: np.ndarray, num_vertices: int) -> np.ndarray:
    """Vertices (P,) bool on an edge that has only one triangle."""
    edges = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), axis=1)
    unique, count = np.unique(edges, axis=0, return_counts=True)
    border = np.zeros(num_vertices, bool)
    border[unique[count == 1]] = True
    return border


def _flips(points: list[list[float]], face: list[int], gone: int, kept: int) -> bool:
    before = _normal(*(points[v] for v in face))
    after = _normal(*(points[kept if v == gone else v] for v in face))
    dot = sum(x * y for x, y in zip(before, after))
    size = (sum(x * x for x in before) * sum(x * x for x in after)) ** 0.5
    return dot < _MIN_COSINE * size


def _normal(a: list[float], b: list[float], c: list[float]) -> tuple[float, float, float]:
    ux, uy, uz = b[0] - a[0], b[1] - a[1], b[2] - a[2]
    vx, vy, vz = c[0] - a[0], c[1] - a[1], c[2] - a[2]
    return uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
