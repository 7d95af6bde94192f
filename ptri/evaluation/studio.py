"""What the training subjects' rigs say of a data set's cameras: ``evaluate.known_studio``."""

from __future__ import annotations

import functools

import torch

from ptri.data.multiview import MultiView
from ptri.errors import UserError
from ptri.posterior.prior import Prior
from ptri.rig.studio import learn_poses


class Studio:
    """The rigs that a data set's training subjects were filmed by."""

    def __init__(self, dataset: MultiView) -> None:
        """
        Raises:
            UserError: the data set has no subjects whose rigs differ from those that are tested, or
                not enough.
        """
        labels, data = dataset.index.labels, dataset.data
        if data.kind != "h36m":
            raise UserError(
                f"evaluate.known_studio: data.kind is {data.kind}; rigs of training subjects are "
                "known of h36m alone"
            )
        names = [f"S{number}" for number in data.train_subjects]
        tested = {labels.subject_names[labels.subject[dataset.row(i)]] for i in range(len(dataset))}
        rows = [labels.subject_names.index(n) for n in names if n in labels.subject_names]
        if tested & set(names):
            raise UserError(
                f"evaluate.known_studio: {', '.join(sorted(tested & set(names)))} of "
                "data.train_subjects is tested too; its cameras would be told"
            )
        self._R, self._t = (torch.as_tensor(part[rows]) for part in (labels.R, labels.t))
        self._cameras = dataset.index.cameras
        self.prior([0, 1])  # are there enough?

    def prior(self, places: list[int]) -> Prior:
        """What is known of views at these places among the chosen cameras, the first as frame."""
        return self._learn(tuple(places))

    @functools.cache  # noqa: B019, as long-lived as an evaluation
    def _learn(self, places: tuple[int, ...]) -> Prior:
        cameras = [self._cameras[place] for place in places]
        poses = learn_poses(self._R[:, cameras], self._t[:, cameras])
        return Prior(poses.t.new_zeros(0, 0), poses)
