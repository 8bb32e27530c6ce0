"""Which sites can be among the k best anywhere in a box: a quadtree over the window."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import numpy as np

from splinterp._typing import Array

SLACK = 1e-12
"""Score by which a site must be beaten to be dropped (scores are of the order of 1): ties stay."""
ROOM = 20
"""A box is split until it has at most this many candidates more than `order`."""
MAX_DEPTH = 24
PART_ENTRIES = 2_000_000
"""Scores computed at a time."""
MAX_ENTRIES = 4_000_000
"""Of all lists together, or 40 a site: sites that tie along a whole line would otherwise fill boxes without end."""


def near_top(sites: Array, biases: Array, order: int, centre: Array, half: Array, slack: float = SLACK) -> Array:
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
    return np.nonzero(scores + spread >= -lowest - slack)[0]


class LevelIndex:
    """Boxes that tile the rectangle `[-half, half]`, each with every site that is among the `order` best somewhere in it.

    Boxes are split, largest first, until the lists are short or hold MAX_ENTRIES; long lists cost time, never correctness.

    Args:
        sites: (m, 2) gradients of the scores; repeated rows of (sites, biases) at most `order` times.
        biases: (m,) scores at the origin.
        order: how many sites are chosen at a point.
        half: (2,) half the sides of the rectangle.
        blur: multiplies the slack for ties.
    """

    def __init__(self, sites: Array, biases: Array, order: int, half: Array, blur: float = 1.0) -> None:
        self.sites, self.biases, self.order, self.half = sites, biases, order, half
        centres: list[Array] = [np.zeros(2)]
        halves: list[Array] = [half]
        children: list[int] = [-1]
        lists: list[Array] = [np.arange(len(sites))]
        queue = deque([(0, 0)])
        entries, limit = len(sites), max(MAX_ENTRIES, 40 * len(sites))
        while queue:
            box, depth = queue.popleft()
            among = lists[box]
            lists[box] = kept = among[near_top(sites[among], biases[among], order, centres[box], halves[box], SLACK * blur)]
            entries -= len(among) - len(kept)
            if self._distinct(kept) <= order + ROOM or depth >= MAX_DEPTH or entries + 3 * len(kept) > limit:
                continue
            entries += 3 * len(kept)
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

    def scored(self, points: Array) -> Iterator[tuple[Array, Array, Array]]:
        """(rows, candidates, scores) of the points by their boxes' lists, in parts of bounded size.

        Parts are of similar list lengths; `candidates` and `scores` are (len(rows), longest list), padding scores -inf.
        """
        boxes = self.locate(points)
        lengths = self.lengths[boxes]
        order = np.argsort(lengths, kind="stable")
        start = 0
        while start < len(order):
            # As many of the next points as fit when all lists are padded to the longest of them.
            ahead = lengths[order[start : start + PART_ENTRIES]]
            count = max(1, int(np.searchsorted(ahead * np.arange(1, len(ahead) + 1), PART_ENTRIES, side="right")))
            rows = order[start : start + count]
            start += count
            columns = np.arange(max(1, int(ahead[count - 1])))
            at = np.minimum(self.starts[boxes[rows]][:, None] + columns, len(self.flat) - 1)
            scores = self.flat_x[at] * points[rows, :1] + self.flat_y[at] * points[rows, 1:] + self.flat_b[at]
            scores[columns >= lengths[rows][:, None]] = -np.inf
            yield rows, self.flat[at], scores
