"""Predictions of responses that are not Gaussian: through the inverse link, and with the family's own noise.

A mean over the population of groups needs one dimension of quadrature only, however many factors have new groups in a
row and however many effects these have: given the parameters, the sum of ``z'u`` over them is one normal number with
variance ``sum z' Sigma z``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from partialpool.algebra.quadrature import gauss_hermite
from partialpool.design.design import NewRows
from partialpool.design.predictor import FactorRows, LinearPredictor
from partialpool.errors import DataError
from partialpool.posterior.effects import leaf_conditional
from partialpool.posterior.groups import NEW_GROUPS, NOISE, random_stream
from partialpool.posterior.predict import BLOCK, MOST_KEPT, Prediction, Source, linear_means

if TYPE_CHECKING:
    import pandas

    from partialpool.posterior.posterior import Posterior

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Gauss-Hermite nodes for the mean over a population of groups.
NODES = 20
#: What a source computes beside the kinds of `predict`: mean and variance of the response; log densities of its rows.
MOMENTS, DENSITY = "moments", "density"


@dataclass(frozen=True, eq=False)
class JointSource(Source):
    """Draws of a prediction where the response is not Gaussian.

    second : rows in the linear predictor of the family's own parameter with a formula, or None.
    trials, y : (n,) or None.
    """

    second: LinearPredictor | None = None
    trials: Array | None = None
    y: Array | None = None

    @property
    def block_rows(self) -> int:
        """Several arrays of a block stand beside each other."""
        return max(1, BLOCK // 4 // max(len(self.draws), 1))

    @cached_property
    def factor_rows(self) -> tuple[FactorRows, ...]:
        """The grouping factors of both linear predictors, each once."""
        second = () if self.second is None else self.second.factors
        return tuple({factor.factor: factor for factor in (*second, *self.rows.factors)}.values())

    def prepare(self) -> None:
        """Compute what the blocks share, before threads ask for it."""
        super().prepare()
        if self._held is None:
            leaf_conditional(self.fit)

    def block(self, number: int, rows: Ints) -> Array:
        """The draws (rows, draws) of block `number`; (rows, draws, 2) of MOMENTS."""
        eta0, spread = self._predictor(self.rows, rows, number, 0)
        if self.kind == "linear":
            return eta0
        eta1, eta2 = self._own(rows, number)
        family = self.fit.model.family
        if self.kind == "mean":
            return self._mean(eta0, eta1, eta2, spread)
        trials = None if self.trials is None else self.trials[rows][:, None]
        if self.kind == "response":
            return family.simulate(random_stream(self.fit, NOISE, number), eta0, eta1, eta2, trials)
        if self.kind == MOMENTS:
            mean = family.mean(eta0, eta1, eta2) * (1.0 if trials is None else trials)
            return np.stack([mean, family.variance(eta0, eta1, eta2, trials)], axis=2)
        assert self.y is not None
        value = family.log_density_rows(
            self.y[rows][:, None], eta0, eta1, eta2, None if trials is None else np.broadcast_to(trials, eta0.shape)
        )
        weights = self.fit.model.design.weights
        return value if weights is None else value * weights[rows][:, None]

    def _mean(self, eta0: Array, eta1: Any, eta2: Any, spread: Array | None) -> Array:
        """The expected response, integrated over new groups whose sum has the sds `spread`."""
        family = self.fit.model.family
        out = family.mean(eta0, eta1, eta2)
        if spread is None:
            return out
        new = np.flatnonzero(spread.any(axis=1))
        x, shifted = gauss_hermite(NODES, 1)
        weights = np.exp(shifted - 0.5 * x[:, 0] ** 2)
        own1 = eta1[new] if np.shape(eta1) == eta0.shape else eta1
        total = np.zeros((len(new), eta0.shape[1]))
        for place, weight in zip(x[:, 0], weights / weights.sum(), strict=True):
            total += weight * family.mean(eta0[new] + place * spread[new], own1, eta2)
        out[new] = total
        return out

    def _predictor(self, predictor: LinearPredictor, rows: Ints, number: int, which: int) -> tuple[Array, Array | None]:
        """One linear predictor (rows, draws), and the sd of what new groups add where that is integrated later."""
        eta = predictor.common(self.fit.result.draws_beta[self.draws], rows)
        variance: Array | None = None
        for factor in predictor.factors:
            self._add_known(eta, factor, rows)
            if factor.labels is None or not (factor.codes[rows] < 0).any():
                continue
            if self.new_groups == "sample":
                effects, place = self._new_effects(factor)
                predictor.add_effects(eta, factor, effects, place[rows], rows)
            elif self.new_groups == "population" and self.kind == "response":
                new = factor.codes[rows] < 0
                stream = random_stream(self.fit, NEW_GROUPS, factor.factor, number + 1, which)
                own = np.sqrt(self._population_variance(predictor, factor, rows[new]))
                eta[new] += own * stream.standard_normal(own.shape)
            elif self.new_groups == "population" and self.kind == "mean" and which == 0:
                new = factor.codes[rows] < 0
                variance = np.zeros(eta.shape) if variance is None else variance
                variance[new] += self._population_variance(predictor, factor, rows[new])
        return eta, None if variance is None else np.sqrt(variance)

    def _population_variance(self, predictor: LinearPredictor, factor: FactorRows, rows: Ints) -> Array:
        """z' Sigma z, (rows, draws)."""
        lam = self._lambda(factor.factor)
        if factor.effects is not None:
            lam = lam[:, factor.effects]
        spread = np.einsum("rj,dji->rdi", predictor.V[rows][:, factor.columns], lam)
        return np.asarray((spread**2).sum(axis=2))

    def _own(self, rows: Ints, number: int) -> tuple[Any, Any]:
        """eta1 and eta2: (rows, draws), (1, draws), or 0 where the family has none."""
        model = self.fit.model
        theta = self.fit.result.draws_theta[self.draws]
        known = {name for name, _ in model.hyperparameters.auxiliary}
        parts: list[Any] = []
        for name in model.family.parameters:
            if name in known:
                parts.append(theta[None, :, model.hyperparameters.auxiliary_at(name)])
            else:
                assert self.second is not None
                parts.append(self._predictor(self.second, rows, number, 1)[0])
        parts += [0.0, 0.0]
        return parts[0], parts[1]


def joint_source(
    fit: Posterior, new: NewRows | None, factors: Sequence[int], kind: str, new_groups: str
) -> JointSource:
    """What computes a prediction; the draws are all of the fit's."""
    design = fit.model.design
    second = trials = y = None
    if new is None:
        rows = LinearPredictor.of_design(design, factors)
        if len(design.prefixes) > 1:
            second = LinearPredictor.of_design(design, factors, 1)
        trials, y = design.trials, design.y
    else:
        rows = LinearPredictor.of_new_rows(design, new, factors)
        if len(design.prefixes) > 1:
            second = LinearPredictor.of_new_rows(design, new, factors, 1)
        trials, y = new.trials, new.y
        if kind == "response" and design.trials is not None and trials is None:
            text = design.terms.response.trials
            raise DataError(f"The new data lack the column of trials({text}), which a new response needs.")
    every = np.arange(len(fit.result.draws_theta), dtype=np.int64)
    return JointSource(fit, rows, kind, new_groups, None, every, None, second, trials, y)


def predicted(source: JointSource, index: pandas.Index[Any]) -> Prediction:
    """A prediction with its means."""
    count = len(source.draws)
    if source.kind == "linear":
        return Prediction(linear_means(source.fit, source.rows), index, source.kind, count, source)
    if source.kind == "response":  # without the noise
        twin = replace(source, kind="mean")
        mean = _means(twin) * (1.0 if source.trials is None else source.trials)
        return Prediction(mean, index, source.kind, count, source)
    n = source.rows.n_rows
    if n * count > MOST_KEPT:
        return Prediction(_means(source), index, source.kind, count, source)
    kept = np.empty((count, n))
    for rows, block in source.blocks(np.transpose):
        kept[:, rows] = block
    made = Prediction(kept.mean(axis=0), index, source.kind, count, source)
    made.__dict__["_kept"] = kept
    return made


def _means(source: JointSource) -> Array:
    out = np.empty(source.rows.n_rows)
    for rows, mean in source.blocks(lambda block: block.mean(axis=1)):
        out[rows] = mean
    return out


def joint_residuals(fit: Posterior) -> pandas.DataFrame:
    """`Posterior.residuals`: Pearson residuals on the response's scale (counts where there are trials)."""
    import pandas as pd

    from partialpool.posterior.predict import draws_used

    design = fit.model.design
    source = joint_source(fit, None, range(len(design.factors)), MOMENTS, "error")
    source = replace(source, draws=draws_used(fit, source.rows, None))
    moments = np.empty((2, design.n_rows))
    for rows, block in source.blocks(lambda block: block.mean(axis=1).T):
        moments[:, rows] = block
    residual = design.y - moments[0]
    columns = {
        "observed": design.y.copy(),
        "fitted": moments[0],
        "residual": residual,
        "standardised": residual / np.sqrt(moments[1]),
    }
    return pd.DataFrame(columns, index=design.data.index)
