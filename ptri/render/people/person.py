"""Dressed people, drawn from seeds."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ptri.render.people.body import BodyShape, build_shapes, grow_down, sample_phenotypes
from ptri.render.people.dressed import Dressed
from ptri.render.people.garment_files import open_folder
from ptri.render.people.posing import RiggedBody, bind, skin
from ptri.render.people.tailor import dress_in_garments
from ptri.render.people.wardrobe import dress
from ptri.render.settings import RenderConfig


class Person(NamedTuple):
    """A dressed body."""

    shape: BodyShape
    rig: RiggedBody
    dressed: Dressed

    def skin(self, transforms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Points and normals (Q, 3) of the surface for the drivers' transforms (D, 3, 4)."""
        dressed = self.dressed
        return skin(transforms, dressed.weights, dressed.vertices, dressed.normals)


def make_rng(*key: int) -> np.random.Generator:
    """A generator that depends on all the numbers of a key."""
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence(list(key))))


def sample_person(rng: np.random.Generator, config: RenderConfig, any_age: bool = False) -> Person:
    """Draws somebody and clothes.

    Args:
        any_age: a share of `config.children` are no adults.

    Raises:
        UserError: the garment folder is missing or a file of it is damaged.
    """
    phenotypes = {k: v[:1] for k, v in sample_phenotypes(2, rng).items()}
    if any_age:
        young, age, size = rng.random() < config.children, rng.random(), rng.random()
        if young:
            grow_down(phenotypes, np.array([age]), np.array([size]))
    shape = build_shapes(phenotypes)[0]
    rig = bind(shape)
    tight = config.clothed < 1 and rng.random() >= config.clothed
    if not tight and config.garments and rng.random() < config.garment_share:
        garments = open_folder(config.garments)
        return Person(shape, rig, dress_in_garments(shape, rng, garments, config.faces))
    return Person(shape, rig, dress(shape, rng, config.faces, tight))
