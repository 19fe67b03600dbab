"""The shrinkage of crossed factors of a response that is not Gaussian, draw by draw."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from partialpool.inference.root import definite, precision_of_term
from partialpool.posterior.effects import leaf_conditional

if TYPE_CHECKING:
    from partialpool.posterior.posterior import Posterior

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Draws at which the shrinkage of crossed factors is taken where the response is not Gaussian, and the width of a root
#: from which fewer are.
SHRINKAGE_DRAWS, WIDE_ROOT = 128, 300


def root_shrinkage(fit: Posterior) -> tuple[Ints, dict[int, Array]]:
    """Which draws were looked at, and by factor of the root the shrinkage there (draws, groups, terms).

    By the diagonal of the inverse of Laplace's precision matrix, coefficients fixed, as `posterior.effects` has it.
    """
    density, layout, result = leaf_conditional(fit).density, fit.model.latent, fit.result
    count = SHRINKAGE_DRAWS if density.n_root <= WIDE_ROOT else SHRINKAGE_DRAWS // 8
    places = np.unique(np.linspace(0, len(result.draws_theta) - 1, count).astype(np.int64))
    gamma = fit.model.coefficients.from_public(result.draws_beta[places])
    drawn = result.draws_root if result.effects is None else result.effects[:, layout.n_effects - layout.n_root :]
    assert drawn is not None
    out = {
        f: np.empty((len(places), layout.sizes[f], layout.widths[f]))
        for f in range(len(layout.sizes))
        if f != layout.leaf
    }
    for k, place in enumerate(places):
        theta = result.draws_theta[place : place + 1]
        point = density.point(theta[0], gamma[k], drawn[place])
        matrix = np.array(density.curvature(point).precision[density.p :, density.p :])
        for term, own in density.root_terms():
            matrix[own[:, :, None], own[:, None, :]] += precision_of_term(term, theta)[0]
        variance = np.diag(np.linalg.inv(definite(matrix)))
        for term, own in density.root_terms():
            square = term.covariance.sds(theta[:, term.parameters])[0] ** 2
            share = np.where(square > 0, variance[own] / np.where(square > 0, square, 1.0), 1.0)
            columns = slice(term.offset, term.offset + term.covariance.size)
            out[term.factor][k, :, columns] = np.clip(share, 0.0, 1.0)
    return places, out
