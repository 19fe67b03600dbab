r"""No pooling of a factor with the groups of another integrated out, where the response is not Gaussian.

A school's own rows speak through its classes. With coefficients and theta at their posterior means, the effects u of
the factors outside the leaf (`design.latent`: the factor with most effects) are found by Newton's method as the maximum
of

.. math:: \log \int p(y \mid u, v)\, p(v)\, dv + \sum_{f} \log p(u_f),

v the leaf's effects, integrated by quadrature, f the factors that neither are the one in question, whose population is
flat, nor contain it, whose effects are held. The inverse of the negative Hessian is the covariance (Laplace).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from partialpool.inference.joint import JointDensity
from partialpool.inference.root import definite, precision_of_term
from partialpool.posterior.components import coarser_factors
from partialpool.posterior.effects import leaf_conditional
from partialpool.posterior.groups import mean_coefficients, mean_effects
from partialpool.posterior.summaries import node_weights

if TYPE_CHECKING:
    from partialpool.posterior.posterior import Posterior

Array = NDArray[np.float64]

#: Effects outside the leaf up to which their Hessian is afforded; Newton steps, and the change that is none.
WIDEST, STEPS, CLOSE = 1500, 60, 1e-8


def integrates_others(fit: Posterior, factor: int) -> bool:
    """Whether no pooling of a factor integrates the effects of others that do not contain it, rather than hold them."""
    model = fit.model
    if model.exact:
        return True
    layout = model.latent
    return factor != layout.leaf and layout.leaf not in coarser_factors(model, factor) and layout.n_root <= WIDEST


def marginal_estimates(fit: Posterior, factor: int, known: NDArray[np.bool_]) -> tuple[Array, Array]:
    """Estimates and standard errors, each (groups, q); nan for groups not `known` (groups,), and where none was found.

    A group that is not known keeps its population, so that the others can be found.
    """
    density = leaf_conditional(fit).density
    own = fit.model.latent.effects_of(factor) - density.before
    theta = (node_weights(fit.result) @ fit.result.theta)[None, :]
    gamma = fit.model.coefficients.from_public(mean_coefficients(fit))
    root = np.array(mean_effects(fit)[density.before :])
    free = np.ones(len(root), dtype=bool)
    for held in coarser_factors(fit.model, factor):
        free[fit.model.latent.effects_of(held).ravel() - density.before] = False
    prior = _prior_precision(density, theta, factor, known)
    nothing = np.full(own.shape, np.nan), np.full(own.shape, np.nan)
    for _ in range(STEPS):
        found = density.curvature(density.point(theta[0], gamma, root))
        if not np.isfinite(found.value):
            return nothing
        slope = (found.gradient[density.p :] - prior @ root)[free]
        matrix = definite((found.precision[density.p :, density.p :] + prior)[np.ix_(free, free)])
        step = np.linalg.solve(matrix, slope)
        root[free] += step * min(1.0, 1.0 / float(np.abs(step).max()))
        if np.abs(step).max() < CLOSE:
            break
    else:
        return nothing
    variance = np.full(len(root), np.nan)
    variance[free] = np.diag(np.linalg.inv(matrix))
    return np.where(known[:, None], root[own], np.nan), np.where(known[:, None], np.sqrt(variance[own]), np.nan)


def _prior_precision(density: JointDensity, theta: Array, factor: int, known: NDArray[np.bool_]) -> Array:
    """The populations' precision of the root's effects, without that of the known groups of a factor."""
    out = np.zeros((density.n_root, density.n_root))
    for term, own in density.root_terms():
        pooled = own[~known] if term.factor == factor else own
        out[pooled[:, :, None], pooled[:, None, :]] = precision_of_term(term, theta)[0]
    return out
