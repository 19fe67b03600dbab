r"""Mixed derivatives of the fitted mean: every pair of predictors, every draw of the coefficients, averaged over rows.

The averages count rows by `weights()`, for a row of weight 2 is two rows. Sizes are in standard deviations: a mixed
derivative times those of both predictors, over that of the fitted mean, all of them over the rows of the fit. The
mathematics is in `fitted_interactions`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from partialpool.inference.progress import Progress
from partialpool.levels.interactions import ADDITIVE, INTERACTS, UNKNOWN
from partialpool.levels.mean_derivatives import MeanDerivatives, mean_depends_on_second, mean_derivatives
from partialpool.levels.predictor_derivatives import Predictors, Variable, spread
from partialpool.posterior.groups import mean_coefficients
from partialpool.posterior.summaries import node_weights

if TYPE_CHECKING:
    from partialpool.posterior.posterior import Posterior

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Rows times draws times parts of pairs at most (about a second), but at least FEWEST draws.
MOST_COMPUTED, FEWEST = 20_000_000, 400
#: Rows times draws that are computed at once.
BLOCK = 400_000


@dataclass(frozen=True, eq=False)
class ScaleInteractions:
    """Interactions on one scale, each (N, N) and nan where a pair has none (a predictor with itself).

    mean, sd, q05, q95 : of the posterior of the mean over rows of the mixed derivative. positive : the posterior
    probability that it is above 0. standardised : `mean` in standard deviations of the fitted mean and of both
    predictors. rows_positive : the share of rows where it is above 0, at the mean coefficients. size : its mean
    absolute value over rows there, in the same standard deviations. error : the numerical error of `mean`. verdicts :
    of "additive", "interacts", "cannot tell", or "". ``np.asarray`` gives `mean`.
    """

    names: tuple[str, ...]
    mean: Array
    sd: Array
    q05: Array
    q95: Array
    positive: Array
    rows_positive: Array
    standardised: Array
    size: Array
    error: Array
    verdicts: NDArray[np.object_]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False and (dtype is None or np.dtype(dtype) == self.mean.dtype):
            return self.mean
        return np.array(self.mean, dtype=dtype, copy=True)

    def of(self, name: str, pair: tuple[str, str]) -> float:
        """One number of a pair, as ``of("mean", ("x", "z"))``."""
        return float(getattr(self, name)[self.names.index(pair[0]), self.names.index(pair[1])])

    def with_verdict(self, verdict: str) -> list[tuple[str, str]]:
        """The pairs of a verdict, the largest first."""
        i, j = np.triu_indices(len(self.names), 1)
        keep = self.verdicts[i, j] == verdict
        order = np.argsort(-self.size[i, j][keep], kind="stable")
        return [(self.names[a], self.names[b]) for a, b in zip(i[keep][order], j[keep][order], strict=True)]


def scale_interactions(
    fit: Posterior, predictors: Predictors, draws: int | None, tolerance: float
) -> tuple[ScaleInteractions, ScaleInteractions]:
    """All pairs on the scale of the link and on that of the response; one object where these are the same.

    Parameters
    ----------
    draws : how many of the fit's; by default as many as are computed quickly.
    tolerance : the largest `size` of a pair that counts as none.
    """
    return _Computation(fit, predictors, draws, tolerance).scales()


class Term(NamedTuple):
    """A part of a pair's mixed difference of the mean: `sign` times its derivative in 0, 1 or 2 predictors at X.

    slopes : dX/dx of these. mixed : d2X/dx dz where there are two.
    """

    sign: float
    X: Array
    slopes: tuple[Array, ...] = ()
    mixed: Array | None = None


class _Coefficients(NamedTuple):
    """(p + 1, D) of the mean's predictor; of the second predictor or None; eta1 (1, D) where it has no formula."""

    first: Array
    second: Array | None
    constant: Any


class _Computation:
    """All pairs, draws in blocks."""

    def __init__(self, fit: Posterior, predictors: Predictors, asked: int | None, tolerance: float) -> None:
        self.fit, self.predictors, self.tolerance, self.shares = fit, predictors, tolerance, predictors.shares
        self.asked = asked
        self.family = fit.model.family
        self.pairs = [
            (i, j)
            for j in range(len(predictors.variables))
            for i in range(j)
            if predictors.variables[i].column != predictors.variables[j].column
        ]
        self.identity = self.family.link == "identity" and not mean_depends_on_second(self.family)

    def scales(self) -> tuple[ScaleInteractions, ScaleInteractions]:
        """On the scale of the link and on that of the response."""
        curvatures = [self.predictors.curvature(*self._variables(pair)) for pair in self.pairs]
        middle = self._coefficients(None)
        home, home_shares = self.predictors.at_home()
        average = np.array([self.shares @ found.value for found in curvatures])
        rows = [(found.value @ middle.first)[:, 0] for found in curvatures]
        errors = [(found.error @ np.abs(middle.first))[:, 0] for found in curvatures]
        draws = average @ self._coefficients(self._draws_used(0)).first  # linear, and so at little cost
        unit = spread((home @ middle.first)[:, 0], home_shares)
        link = self._scale(draws, average @ middle.first[:, 0], rows, errors, unit)
        if self.identity:
            return link, link
        slopes = self._mean(self.predictors.at({}), middle).d0[:, 0]
        errors = [np.abs(slopes) * own for own in errors]
        terms = [self._terms(pair, found.value) for pair, found in zip(self.pairs, curvatures, strict=True)]
        used = self._draws_used(self.predictors.n_rows * sum(len(own) for own in terms))
        draws = np.hstack([self._response(terms, block) for block in self._blocks(used)])
        rows = [sum(self._term(term, middle) for term in own)[:, 0] for own in terms]  # type: ignore[index]
        unit = spread(self._mean(home, middle).mean[:, 0], home_shares)
        return link, self._scale(draws, draws.mean(axis=1), rows, errors, unit)

    def _variables(self, pair: tuple[int, int]) -> tuple[Variable, Variable]:
        return self.predictors.variables[pair[0]], self.predictors.variables[pair[1]]

    # coefficients

    def _coefficients(self, which: Ints | None) -> _Coefficients:
        """Draws of the coefficients, or their posterior means."""
        fit, design = self.fit, self.fit.model.design
        beta = mean_coefficients(fit)[None, :] if which is None else fit.result.draws_beta[which]
        one = np.ones((len(beta), 1))
        first = np.hstack([np.where(design.x_predictor == 0, beta, 0.0), one]).T
        if not mean_depends_on_second(self.family):
            return _Coefficients(first, None, 0.0)
        if len(design.prefixes) > 1:
            return _Coefficients(first, np.hstack([np.where(design.x_predictor == 1, beta, 0.0), 0.0 * one]).T, None)
        at = fit.model.hyperparameters.auxiliary_at(self.family.parameters[0])
        own = node_weights(fit.result) @ fit.result.theta[:, at] if which is None else fit.result.draws_theta[which, at]
        return _Coefficients(first, None, np.atleast_1d(own)[None, :])

    def _draws_used(self, cost: int) -> Ints:
        """Which draws: those asked for, or as many as take about a second where one costs so many steps."""
        result = self.fit.result
        total = len(result.draws_theta)
        count = min(total, max(FEWEST, MOST_COMPUTED // max(cost, 1))) if self.asked is None else int(self.asked)
        if result.chains:  # neighbours in a chain are alike
            return np.linspace(0, total - 1, count).astype(np.int64)
        return np.arange(count, dtype=np.int64)

    def _blocks(self, draws: Ints) -> Iterator[_Coefficients]:
        size = max(1, BLOCK // max(self.predictors.n_rows, 1))
        with Progress() as bar:
            for start in range(0, len(draws), size):
                bar.update(start / len(draws), "interactions")
                yield self._coefficients(draws[start : start + size])

    # the response

    def _terms(self, pair: tuple[int, int], mixed: Array) -> list[Term]:
        first, second = self._variables(pair)
        at, slope = self.predictors.at, self.predictors.slope
        if first.values is None and second.values is None:
            return [Term(1.0, at({}), (slope(first, {}), slope(second, {})), mixed)]
        terms = []
        for a, p in _sides(first):
            for b, q in _sides(second):
                chosen: Mapping[str, Any] = {
                    v.column: value for v, value in ((first, a), (second, b)) if v.values is not None
                }
                slopes = tuple(slope(v, chosen) for v in (first, second) if v.values is None)
                terms.append(Term(p * q, at(chosen), slopes))
        return terms

    def _mean(self, X: Array, block: _Coefficients) -> MeanDerivatives:
        eta1 = block.constant if block.second is None else X @ block.second
        return mean_derivatives(self.family, X @ block.first, eta1)

    def _response(self, terms: Sequence[Sequence[Term]], block: _Coefficients) -> Array:
        """The mean over rows of each pair's mixed derivative, (pairs, draws)."""
        kept: dict[int, Any] = {}
        return np.array([sum(self.shares @ self._term(term, block, kept) for term in own) for own in terms])

    def _term(self, term: Term, block: _Coefficients, kept: dict[int, Any] | None = None) -> Array:
        """A part of the mixed difference of the mean, (n, draws)."""
        kept = {} if kept is None else kept

        def once(key: Array, make: Any) -> Any:
            if id(key) not in kept:
                kept[id(key)] = make()
            return kept[id(key)]

        at: MeanDerivatives = once(term.X, lambda: self._mean(term.X, block))
        if not term.slopes:
            return term.sign * at.mean
        first = [once(own, lambda own=own: own @ block.first) for own in term.slopes]
        if len(first) == 1:
            out = at.d0 * first[0]
        else:
            assert term.mixed is not None
            out = at.d00 * first[0] * first[1]
            if term.mixed.any():
                out += at.d0 * (term.mixed @ block.first)
        if block.second is not None:
            out = out + self._second(term, block.second, at, first)
        return np.asarray(term.sign * out)

    def _second(self, term: Term, beta: Array, at: MeanDerivatives, first: Sequence[Array]) -> Array:
        """What the formula of the family's own parameter adds where the mean depends on it."""
        assert at.d1 is not None and at.d01 is not None and at.d11 is not None
        own = [slope @ beta for slope in term.slopes]
        if len(own) == 1:
            return np.asarray(at.d1 * own[0])
        assert term.mixed is not None
        both = at.d01 * (first[0] * own[1] + first[1] * own[0]) + at.d11 * own[0] * own[1]
        return np.asarray(both + at.d1 * (term.mixed @ beta))

    # the answer

    def _scale(
        self, draws: Array, means: Array, rows: Sequence[Array], errors: Sequence[Array], outcome: float
    ) -> ScaleInteractions:
        """draws (pairs, D), means (pairs,); by pair, rows (n,) at the mean coefficients and their errors.

        outcome : the standard deviation of the fitted mean.
        """
        count = len(self.predictors.variables)
        numbers = {
            name: np.full((count, count), np.nan)
            for name in ("mean", "sd", "q05", "q95", "positive", "rows_positive", "standardised", "size", "error")
        }
        verdicts = np.full((count, count), "", dtype=object)
        for number, (i, j) in enumerate(self.pairs):
            first, second = self._variables((i, j))
            unit = first.spread * second.spread / outcome
            size, doubt = float(self.shares @ np.abs(rows[number])), float(self.shares @ errors[number])
            own = draws[number]
            found = {
                "mean": means[number], "sd": own.std(), "positive": float(np.mean(own > 0)), "error": doubt,
                "rows_positive": self._share_of(rows[number] > 0), "size": size * unit,
                "standardised": means[number] * unit,
            }  # fmt: skip
            found["q05"], found["q95"] = np.quantile(own, [0.05, 0.95])
            for name, value in found.items():
                numbers[name][i, j] = numbers[name][j, i] = value
            verdicts[i, j] = verdicts[j, i] = _verdict(size, doubt, unit, self.tolerance)
        return ScaleInteractions(tuple(v.label for v in self.predictors.variables), verdicts=verdicts, **numbers)

    def _share_of(self, rows: NDArray[np.bool_]) -> float:
        """What some rows count; 0 and 1 without rounding."""
        counting = rows[self.shares > 0]
        return float(self.shares @ rows) if counting.any() and not counting.all() else float(counting.all())


def _sides(variable: Variable) -> list[tuple[Any, float]]:
    """The values that a difference is between with their signs; of a derivative, one without a value."""
    if variable.values is None:
        return [(None, 1.0)]
    return [(variable.values[0], -1.0 / variable.unit), (variable.values[1], 1.0 / variable.unit)]


def _verdict(size: float, error: float, unit: float, tolerance: float) -> str:
    if (size + error) * unit <= tolerance:
        return ADDITIVE
    return INTERACTS if size * unit > tolerance and size > 2 * error else UNKNOWN
