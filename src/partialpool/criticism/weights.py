r"""Weights of models from their pointwise scores: stacking and pseudo-BMA+.

*Stacking* (Yao, Vehtari, Simpson and Gelman, 2018, Bayesian Analysis 13, 917-1007): the mixture of the models'
predictive distributions that would have predicted the units best,

.. math:: \max_{w \ge 0,\ \sum w = 1}\ \sum_i \log \sum_m w_m e^{\mathrm{elpd}_{im}},

which is concave in w and solved with the certificate of `pooling.simplex`.

*Pseudo-BMA+*: weights in proportion to :math:`e^{\mathrm{elpd}_m}`, averaged over Bayesian bootstrap samples of the
units (Dirichlet weights, Rubin 1981), so that they say how uncertain the totals are.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from partialpool.errors import ModelError
from partialpool.pooling.simplex import maximise_weights

Array = NDArray[np.float64]

#: Bayesian bootstrap samples, and numbers of one block of them.
SAMPLES, BLOCK = 4000, 4_000_000


def stacking_weights(elpd: ArrayLike) -> Array:
    """The weights of the mixture of models that predicts best.

    Parameters
    ----------
    elpd : array (U, M)
        Log predictive density of each unit under each model.

    Returns
    -------
    array (M,)
        Not negative, of sum 1.

    Raises
    ------
    ModelError
        If a log density is nan, or a unit is impossible under every model.

    Examples
    --------
    >>> stacking_weights(np.log([[0.9, 0.1], [0.9, 0.1], [0.1, 0.9], [0.1, 0.9]])).round(6).tolist()
    [0.5, 0.5]
    """
    scores = _checked(elpd)
    if not np.isfinite(scores.max(axis=1)).all():
        raise ModelError("A unit has density 0 under every model, so that no mixture of them predicts it.")
    if scores.shape[1] == 1 or np.ptp(scores, axis=1).max() == 0:
        return np.full(scores.shape[1], 1 / scores.shape[1])
    weights = maximise_weights(scores.T, tolerance=1e-10).weights
    return np.asarray(weights / weights.sum())


def pseudo_bma_weights(elpd: ArrayLike, seed: int = 0, samples: int = SAMPLES) -> Array:
    """Weights in proportion to the exponential of the total score, averaged over Bayesian bootstrap samples.

    Parameters
    ----------
    elpd : array (U, M)
        Log predictive density of each unit under each model.
    seed : int
    samples : int

    Returns
    -------
    array (M,)

    Examples
    --------
    >>> scores = np.random.default_rng(1).normal(0, 1, (100, 1)) + [0.0, 0.0]
    >>> pseudo_bma_weights(scores).tolist()
    [0.5, 0.5]
    """
    scores = _checked(elpd)
    units, models = scores.shape
    impossible = np.isneginf(scores).any(axis=0)  # one such unit rules a model out
    if impossible.all():
        raise ModelError("Every model gives density 0 to some unit, so that none can be weighted by its total score.")
    top = scores[:, ~impossible].max(axis=1, keepdims=True)
    centred = np.where(impossible, 0.0, scores - top)
    rng = np.random.default_rng(np.random.SeedSequence(seed))
    total = np.zeros(models)
    size = max(1, BLOCK // units)
    for start in range(0, samples, size):
        shares = rng.standard_exponential((min(size, samples - start), units))
        shares /= shares.sum(axis=1, keepdims=True)
        z = np.where(impossible, -np.inf, units * (shares @ centred))
        own = np.exp(z - z.max(axis=1, keepdims=True))
        total += (own / own.sum(axis=1, keepdims=True)).sum(axis=0)
    return np.asarray(total / samples)


def _checked(elpd: ArrayLike) -> Array:
    scores = np.asarray(elpd, dtype=float)
    if scores.ndim != 2 or not scores.size:
        raise ModelError(f"Pointwise scores have a row a unit and a column a model; these have shape {scores.shape}.")
    if np.isnan(scores).any() or (scores == np.inf).any():
        raise ModelError("A pointwise score is not a number, so that models cannot be weighted by it.")
    return scores
