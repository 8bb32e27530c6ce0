"""Which sites can be among the k best anywhere in a box: a quadtree over the window."""

from __future__ import annotations

from collections import deque

import numpy as np

from splinterp._typing import Array

SLACK = 1e-12
"""Score by which a site must be beaten to be dropped (scores are of the order of 1): ties stay."""
ROOM = 20
"""A box is split until it has at most this many candidates more than `order`."""
MAX_DEPTH = 24


def near_top(sites: Array, biases: Array, order: int, centre: Array, half: Array) -> Array:
    """Indices of the sites that may be among the `order` best somewhere in the box: all that are, and few others.

    Bounds are taken on scores minus that of a site good at the centre; over a small box little is left of them.
    """
    if len(sites) <= order:
        return np.arange(len(sites))
    scores = sites @ centre + biases
    reference = np.argpartition(-scores, order - 1)[order - 1]
    spread = np.abs(sites - sites[reference]) @ half
    scores -= scores[reference]
    lowest = np.partition(spread - scores, order - 1)[order - 1]  # minus the order-th largest lower bound
    return np.nonzero(scores + spread >= -lowest - SLACK)[0]


class LevelIndex:
    """Boxes that tile the rectangle `[-half, half]`, each with every site that is among the `order` best somewhere in it.

    Boxes are split, largest first, until the lists are short or there are `max_boxes` boxes; long lists cost time,
    never correctness.

    Args:
        sites: (m, 2) gradients of the scores; repeated rows of (sites, biases) at most `order` times.
        biases: (m,) scores at the origin.
        order: how many sites are chosen at a point.
        half: (2,) half the sides of the rectangle.
    """

    def __init__(self, sites: Array, biases: Array, order: int, half: Array, max_boxes: int = 200_000) -> None:
        self.sites, self.biases, self.order, self.half = sites, biases, order, half
        centres: list[Array] = [np.zeros(2)]
        halves: list[Array] = [half]
        children: list[int] = [-1]
        lists: list[Array] = [np.arange(len(sites))]
        queue = deque([(0, 0)])
        while queue:
            box, depth = queue.popleft()
            among = lists[box]
            lists[box] = kept = among[near_top(sites[among], biases[among], order, centres[box], halves[box])]
            if self._distinct(kept) <= order + ROOM or depth >= MAX_DEPTH or len(lists) + 4 > max_boxes:
                continue
            children[box] = len(lists)
            for side in ((-0.5, -0.5), (0.5, -0.5), (-0.5, 0.5), (0.5, 0.5)):
                queue.append((len(lists), depth + 1))
                centres.append(centres[box] + side * halves[box])
                halves.append(halves[box] / 2)
                children.append(-1)
                lists.append(kept)
            lists[box] = kept[:0]
        self.centres, self.halves, self.children = np.array(centres), np.array(halves), np.array(children)
        self.lengths = np.array([len(kept) for kept in lists])
        self.starts = np.concatenate([[0], np.cumsum(self.lengths)])
        self.flat = np.concatenate(lists)
        self.flat_x, self.flat_y, self.flat_b = sites[self.flat, 0], sites[self.flat, 1], biases[self.flat]

    def _distinct(self, kept: Array) -> int:
        if len(kept) <= self.order + ROOM or len(kept) > 4 * (self.order + ROOM):
            return len(kept)
        return len(np.unique(np.column_stack([self.sites[kept], self.biases[kept]]), axis=0))

    def leaves(self) -> Array:
        """The boxes that are not split."""
        return np.nonzero(self.children < 0)[0]

    def locate(self, points: Array) -> Array:
        """The unsplit box that holds each of `points` (n, 2); points outside the rectangle get the nearest one."""
        box = np.zeros(len(points), dtype=np.int64)
        while True:
            inner = self.children[box] >= 0
            if not inner.any():
                return box
            right = points >= self.centres[box]
            box = np.where(inner, self.children[box] + right[:, 0] + 2 * right[:, 1], box)

    def scores(self, points: Array, boxes: Array) -> tuple[Array, Array]:
        """(candidates, scores), both (n, longest list), of each point by its box's list; padding scores -inf."""
        width = self.lengths[boxes].max(initial=1)
        columns = np.arange(width)
        at = np.minimum(self.starts[boxes][:, None] + columns, len(self.flat) - 1)
        scores = self.flat_x[at] * points[:, :1] + self.flat_y[at] * points[:, 1:] + self.flat_b[at]
        scores[columns >= self.lengths[boxes][:, None]] = -np.inf
        return self.flat[at], scores
