"""The vector of all group effects of a model whose rows stay rows (responses that are not Gaussian)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from partialpool.design.design import Design

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class LatentLayout:
    """Where group effects, and the factors Lambda of their covariances, stand in their flat vectors.

    The leaf's effects come first (a group's effects together), then those of the other factors in the order of the
    design: the root. Tuples are indexed by factor, in the order of the design.

    Attributes
    ----------
    leaf : the factor that is integrated out group by group: the one with the most effects; None without factors.
    widths, sizes : effects of a group, and number of groups.
    lam_at, effect_at : where a factor's Lambda, and the effects of its first group, begin.
    n_effects, n_root : how many effects there are, and how many of them are not the leaf's.
    """

    leaf: int | None
    widths: tuple[int, ...]
    sizes: tuple[int, ...]
    lam_at: tuple[int, ...]
    effect_at: tuple[int, ...]
    n_effects: int
    n_root: int

    @property
    def order(self) -> tuple[int, ...]:
        """The factors in the order of the vector: the leaf, then the others."""
        rest = tuple(factor for factor in range(len(self.sizes)) if factor != self.leaf)
        return rest if self.leaf is None else (self.leaf, *rest)

    @property
    def n_lam(self) -> int:
        """Length of the flat vector of all Lambda."""
        return sum(width * width for width in self.widths)

    def effects_of(self, factor: int) -> Ints:
        """Positions of a factor's effects in the vector of all effects, (groups, width)."""
        width = self.widths[factor]
        groups = np.arange(self.sizes[factor], dtype=np.int64)
        return self.effect_at[factor] + groups[:, None] * width + np.arange(width)

    def root_at(self, factor: int) -> int:
        """Position of a factor's first effect within the root."""
        return self.effect_at[factor] - (self.n_effects - self.n_root)


def latent_layout(design: Design) -> LatentLayout:
    """The layout of a design's group effects.

    Examples
    --------
    >>> from partialpool.design.design import build_design
    >>> data = {"y": [1.0, 2, 4, 3], "a": list("ppqq"), "b": list("uvwu")}
    >>> layout = latent_layout(build_design("y ~ 1 + (1|a) + (1|b)", data))
    >>> layout.leaf, layout.effects_of(0).ravel().tolist(), layout.root_at(0)
    (1, [3, 4], 0)
    """
    sizes = tuple(len(factor.labels) for factor in design.factors)
    widths = tuple(
        sum(len(group.names) for group in design.groups if group.factor == factor) for factor in range(len(sizes))
    )
    counts = [groups * width for groups, width in zip(sizes, widths, strict=True)]
    leaf = counts.index(max(counts)) if counts else None
    lam_at, effect_at = [0] * len(sizes), [0] * len(sizes)
    lam = effect = 0
    for factor in ([] if leaf is None else [leaf]) + [factor for factor in range(len(sizes)) if factor != leaf]:
        lam_at[factor], effect_at[factor] = lam, effect
        lam += widths[factor] ** 2
        effect += counts[factor]
    n_root = effect - (0 if leaf is None else counts[leaf])
    return LatentLayout(leaf, widths, sizes, tuple(lam_at), tuple(effect_at), effect, n_root)
