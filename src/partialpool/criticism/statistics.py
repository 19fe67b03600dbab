r"""What is compared between the data and their replicates, overall and group by group.

A statistic is a function of the responses, T(y), or of the standardised residuals at the draw that made the replicate,
T(z(y, draw)), which is compared draw by draw (Gelman, Meng and Stern 1996, Statistica Sinica 6, 733-807). p-values of
both kinds are conservative: the replicates come from parameters that the same data informed. Statistics that the
parameters hardly move come close to uniform p-values: skewness and kurtosis, which know no scale, and the slopes of
residuals on predictors, from which the groups' own effects are taken off:

.. math:: T = \sum_j \| Q_j' z_j \|^2 / \sum_j \mathrm{rank}\, Q_j,

Q_j an orthonormal basis of the predictor's columns in group j, weighted by the information of each row and with the
columns of the group's own effects projected off; T is 1 on average where slopes do not vary.

Zeros of counts are compared as

.. math:: T = \sum_i \big[ 1(y_i = 0) - P_i(0) - b_i (y_i - \mu_i) \big],
   \qquad b = -\frac{\sum \mu_i P_i(0)}{\sum \mathrm{Var}_i},

which takes off what a fitted mean explains of them (van den Broek 1995, Biometrics 51, 738-743): since
``cov(1(y=0), y) = -mu P(0)``, T does not move with the mean to first order, so that the posterior's own uncertainty and
its use of the data drop out. b_i is a mean over the rows of a group as far as the group's effect is free, else over
all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from partialpool.design.predictor import factor_columns
from partialpool.levels.crossing import root_of, split_name

if TYPE_CHECKING:
    from partialpool.design.design import Design
    from partialpool.posterior.posterior import Posterior
    from partialpool.spec.hyperparameters import TermLayout

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
#: (rows, replicates) -> (replicates,)
Function = Callable[[Array], Array]

RESPONSES, RESIDUALS = "responses", "residuals"
BOTH, LARGER = "two-sided", "larger"
#: Share of a column's squares within groups that counts as varying there.
VARIES = 1e-9


@dataclass(frozen=True, eq=False)
class Statistic:
    """One statistic.

    name : by which it is asked for and stands in tables. on : what it is a function of, responses or residuals.
    of : (rows, replicates) -> (replicates,). side : whether small values are a misfit too. factor : the grouping factor
    it is about. predictor : the predictor whose slopes it is about. by_group : the same for each group, (rows,
    replicates) and Groups -> (groups, replicates), or None.
    """

    name: str
    on: str
    of: Function
    side: str = BOTH
    factor: str = ""
    predictor: str = ""
    by_group: Callable[[Array, Groups], Array] | None = None

    @property
    def label(self) -> str:
        """The name as tables show it."""
        what = f" of {self.predictor}" if self.predictor else ""
        return f"{self.name}{what}" + (f" by {self.factor}" if self.factor else "")


@dataclass(frozen=True, eq=False)
class Groups:
    """The rows of each group of a factor, side by side: order (n,), the start of each group (J,), sizes (J,).

    sorted : whether the rows stand in that order already.
    """

    order: Ints
    start: Ints
    sizes: Array
    sorted: bool = False

    @classmethod
    def of(cls, design: Design, factor: int) -> Groups:
        """Those of a design's factor; every group has a row."""
        codes = design.factors[factor].codes
        order = np.argsort(codes, kind="stable")
        sizes = np.bincount(codes, minlength=len(design.factors[factor].labels))
        start = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        return cls(order, start, sizes.astype(float), bool((np.diff(codes) >= 0).all()))

    def together(self, values: Array) -> Array:
        """The rows in the order of the groups."""
        return values if self.sorted else values[self.order]

    def sums(self, values: Array) -> Array:
        """(rows, ...) -> (groups, ...)."""
        return np.asarray(np.add.reduceat(self.together(values), self.start, axis=0))

    def reduced(self, values: Array, function: np.ufunc) -> Array:
        """The same for np.maximum or np.minimum."""
        return np.asarray(function.reduceat(self.together(values), self.start, axis=0))

    def spread(self, values: Array) -> Array:
        """Standard deviations within each group (groups, ...), 0 where it has one row."""
        shape = (-1, *([1] * (values.ndim - 1)))
        sizes = self.sizes.reshape(shape)
        mean = self.sums(values) / sizes
        centred = self.together(values) - np.repeat(mean, self.sizes.astype(int), axis=0)
        square = np.add.reduceat(centred**2, self.start, axis=0)
        return np.asarray(np.sqrt(square / np.maximum(sizes - 1, 1)))


# -- of responses -----------------------------------------------------------------------------------------------------


def _mean(y: Array) -> Array:
    return np.asarray(y.mean(axis=0))


def _sd(y: Array) -> Array:
    return np.asarray(y.std(axis=0, ddof=1))


def _zeros(y: Array) -> Array:
    return np.asarray((y == 0).mean(axis=0))


def _minimum(y: Array) -> Array:
    return np.asarray(y.min(axis=0))


def _maximum(y: Array) -> Array:
    return np.asarray(y.max(axis=0))


def _median(y: Array) -> Array:
    return np.asarray(np.median(y, axis=0))


#: Statistics of the response alone, by name.
SIMPLE: dict[str, Statistic] = {
    own.name: own
    for own in (
        Statistic("mean", RESPONSES, _mean, by_group=lambda y, g: g.sums(y) / g.sizes[:, None]),
        Statistic("sd", RESPONSES, _sd, by_group=lambda y, g: g.spread(y)),
        Statistic("zeros", RESPONSES, _zeros, by_group=lambda y, g: g.sums((y == 0).astype(float)) / g.sizes[:, None]),
        Statistic("minimum", RESPONSES, _minimum, by_group=lambda y, g: g.reduced(y, np.minimum)),
        Statistic("maximum", RESPONSES, _maximum, by_group=lambda y, g: g.reduced(y, np.maximum)),
        Statistic("median", RESPONSES, _median),
    )
}


def within_group_correlation(design: Design, factor: int) -> Statistic | None:
    """The share of the response's variance that lies between groups, by analysis of variance; None without replication.

    Donner 1986, International Statistical Review 54, 67-82.
    """
    groups = Groups.of(design, factor)
    count, total = len(groups.sizes), float(groups.sizes.sum())
    if count < 2 or total - count < 1:
        return None
    typical = (total - float((groups.sizes**2).sum()) / total) / (count - 1)

    def of(y: Array) -> Array:
        centred = y - y.mean(axis=0)
        sums = groups.sums(centred)
        between = (sums**2 / groups.sizes[:, None]).sum(axis=0)
        within = (np.einsum("ij,ij->j", centred, centred) - between) / (total - count)
        between = between / (count - 1)
        return np.asarray((between - within) / np.maximum(between + (typical - 1) * within, np.finfo(float).tiny))

    return Statistic("within-group correlation", RESPONSES, of, factor=design.factors[factor].name)


def sd_of_group_means(design: Design, factor: int) -> Statistic | None:
    """The standard deviation of the groups' mean responses; None for a single group, or groups of one row each."""
    groups = Groups.of(design, factor)
    if len(groups.sizes) < 2 or groups.sizes.max() == 1:  # the response itself
        return None

    def of(y: Array) -> Array:
        return np.asarray((groups.sums(y) / groups.sizes[:, None]).std(axis=0, ddof=1))

    return Statistic("sd of group means", RESPONSES, of, factor=design.factors[factor].name)


def largest_group_mean(design: Design, factor: int) -> Statistic | None:
    """The largest distance of a group's mean from the mean of all groups', in their standard deviations."""
    groups = Groups.of(design, factor)
    if len(groups.sizes) < 3:
        return None

    def of(y: Array) -> Array:
        means = groups.sums(y) / groups.sizes[:, None]
        spread = np.maximum(means.std(axis=0, ddof=1), np.finfo(float).tiny)
        return np.asarray((np.abs(means - means.mean(axis=0)) / spread).max(axis=0))

    return Statistic("largest group mean", RESPONSES, of, LARGER, factor=design.factors[factor].name)


# -- of residuals -----------------------------------------------------------------------------------------------------


def _skewness(z: Array) -> Array:
    centred = z - z.mean(axis=0)
    square = np.einsum("ij,ij->j", centred, centred) / len(z)
    return np.asarray(np.einsum("ij,ij,ij->j", centred, centred, centred) / len(z) / np.maximum(square, 1e-300) ** 1.5)


def _kurtosis(z: Array) -> Array:
    centred = z - z.mean(axis=0)
    centred *= centred
    square = centred.mean(axis=0)
    return np.asarray(np.einsum("ij,ij->j", centred, centred) / len(z) / np.maximum(square, 1e-150) ** 2 - 3)


def _dispersion(z: Array) -> Array:
    return np.asarray(np.einsum("ij,ij->j", z, z) / len(z))


SKEW = Statistic("skewness of residuals", RESIDUALS, _skewness)
TAILS = Statistic("tails of residuals", RESIDUALS, _kurtosis)
DISPERSION = Statistic("dispersion", RESIDUALS, _dispersion)


def slopes(fit: Posterior, factor: int, columns: Ints, name: str, information: Array) -> Statistic | None:
    """Whether the slope of a predictor (its columns of V) varies by the groups of a factor.

    information : (n,) what each row tells of its linear predictor.

    None where the predictor does not vary within groups.
    """
    design = fit.model.design
    groups = Groups.of(design, factor)
    root = np.sqrt(information)
    q = _within(design.V[:, columns], design.V[:, factor_columns(design)[factor]], root, groups)
    rank = float(np.count_nonzero(groups.sums(q**2) > 0.5))
    if rank < 2:
        return None
    used = [k for k in range(q.shape[1]) if q[:, k].any()]

    def of(z: Array) -> Array:
        total = np.zeros(z.shape[1])
        for k in used:
            total += (groups.sums(z * q[:, k : k + 1]) ** 2).sum(axis=0)
        return total / rank

    return Statistic("slopes", RESIDUALS, of, LARGER, design.factors[factor].name, name)


def _within(x: Array, z: Array, root: Array, groups: Groups) -> Array:
    """Within each group, an orthonormal basis of ``root x`` less its projection on ``root z``: (n, c), 0 where none."""
    size = np.maximum(np.sqrt((x**2).mean(axis=0)), 1e-300)
    scale = np.maximum(np.sqrt((z**2).mean(axis=0)), 1e-300)
    x, z = x / size * root[:, None], z / scale * root[:, None]
    code = np.empty(len(x), dtype=np.int64)
    code[groups.order] = np.repeat(np.arange(len(groups.sizes)), groups.sizes.astype(int))
    zz = groups.sums(z[:, :, None] * z[:, None, :])
    zx = groups.sums(z[:, :, None] * x[:, None, :])
    x = x - np.einsum("iq,iqc->ic", z, (np.linalg.pinv(zz, rcond=1e-10, hermitian=True) @ zx)[code])
    gram = groups.sums(x[:, :, None] * x[:, None, :])
    values, vectors = np.linalg.eigh(gram)
    # Relative to the column over all rows: what a group's rows do not vary in tells nothing of its slope.
    known = values > VARIES * float((root**2).sum()) / len(groups.sizes)
    turn = vectors * np.where(known, 1 / np.sqrt(np.where(known, values, 1.0)), 0.0)[:, None, :]
    return np.asarray(np.einsum("ic,ick->ik", x, turn[code]))


def missing_slopes(fit: Posterior, factor: int) -> list[tuple[str, Ints]]:
    """Predictors without a varying slope by a factor: the name, and the columns of V that belong to it.

    Main effects in the linear predictor of the mean; a categorical predictor's columns are one.
    """
    design = fit.model.design
    there = set(factor_columns(design)[factor].tolist())
    found: dict[str, list[int]] = {}
    for name, column, own in zip(design.x_names, design.x_columns, design.x_predictor, strict=True):
        if own or name == "Intercept" or len(split_name(name)) > 1:
            continue
        found.setdefault(root_of(name), []).append(int(column))
    return [(name, np.array(columns)) for name, columns in found.items() if not set(columns) & there]


def row_information(fit: Posterior, mean: Array, eta1: Array, eta2: Array) -> Array:
    """What each row tells of its linear predictor at `mean` (n,): (d mean / d eta)^2 over the response's variance."""
    design = fit.model.design
    if fit.model.exact:
        from partialpool.design.predictor import row_variance

        at = fit.model.hyperparameters.sigma_at
        sigma = 0.0 if at is None else float(np.exp(fit.result.draws_theta[:, at]).mean())
        return np.asarray(1 / np.broadcast_to(row_variance(design, design.se_sigma).at(sigma), mean.shape))
    from partialpool.criticism.replicates import response_moments

    family, trials = fit.model.family, design.trials
    step = 1e-4 * np.maximum(np.abs(mean), 1.0)
    high, sd = response_moments(family, mean + step, eta1, eta2, trials)
    low, _ = response_moments(family, mean - step, eta1, eta2, trials)
    found = ((high - low) / (2 * step) / sd) ** 2
    return np.where(np.isfinite(found), found, 0.0)


# -- zeros ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class ZerosBeyondMean:
    """T of the module's docstring, at the parameters of each replicate.

    The slopes b follow from the parameters of the draw, never from the data: (y, draw) and (replicate, draw) are then
    alike where the model is right, and T has mean 0 in both.

    factors : of the factors whose intercept varies, their groups, and the positions of log sds in theta.
    """

    fit: Posterior
    factors: tuple[tuple[Groups, NDArray[np.int32], Callable[[Array], Array]], ...]

    @classmethod
    def of(cls, fit: Posterior) -> ZerosBeyondMean:
        """That of a fit."""
        design, found = fit.model.design, []
        for f, factor in enumerate(design.factors):
            for term in fit.model.hyperparameters.terms:
                if term.factor == f and "Intercept" in term.names:
                    found.append((Groups.of(design, f), factor.codes, _sd_of(term)))
        return cls(fit, tuple(found))

    def slopes(self, mean: Array, sd: Array, none: Array, theta: Array) -> Array:
        """b (rows, draws) or (1, draws)."""
        top, bottom = mean * none, np.broadcast_to(sd**2, mean.shape)
        whole = top.sum(axis=0) / np.maximum(bottom.sum(axis=0), 1e-300)
        out = whole[None, :]
        for groups, codes, sd_of in self.factors:
            # What a group's rows tell of its effect, beside its variance over the population.
            told = sd_of(theta) ** 2 * groups.sums(mean**2 / np.maximum(bottom, 1e-300))
            own = groups.sums(top) / np.maximum(groups.sums(bottom), 1e-300) - whole
            out = out + (own * told / (1 + told))[codes]
        return np.asarray(-out)

    def values(self, y: Array, mean: Array, none: Array, slopes: Array) -> Array:
        """T (draws,) of responses (rows, draws) or (rows, 1), their expectations and probabilities of 0."""
        return np.asarray(((y == 0) - none - slopes * (y - mean)).mean(axis=0))


def _sd_of(term: TermLayout) -> Callable[[Array], Array]:
    """theta (D, d) -> the sd of a term's intercept (D,)."""
    at = term.names.index("Intercept")
    return lambda theta: np.asarray(term.covariance.sds(theta[:, term.parameters])[:, at])
