"""Replicated responses: what the fit would have seen, for the same groups or for new ones, a block at a time.

Replicate d belongs to draw d of the posterior: its parameters, and its group effects. With new groups the effects of a
factor, and of all that nests in it, are drawn from their population instead (the mixed predictive distribution of
Marshall and Spiegelhalter 2007, Bayesian Analysis 2, 409-444), so that what the data say of these very groups plays no
part. Blocks of replicates are made from the seed and the block's number, the same ones at every pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from partialpool.design.predictor import FactorRows, LinearPredictor, row_variance
from partialpool.errors import ModelError
from partialpool.inference.progress import Progress
from partialpool.posterior.components import coarser_factors
from partialpool.posterior.groups import effect_draws, layout_of
from partialpool.posterior.predict import MOST_EFFECTS, draws_used

if TYPE_CHECKING:
    from partialpool.posterior.posterior import Posterior

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Streams of the seed.
NOISE, POPULATION = 61, 62
#: Replicates by default; fewer where rows times replicates would be more than MOST, but at least FEWEST.
DEFAULT, MOST, FEWEST = 1000, 40_000_000, 200
#: Numbers of one block.
BLOCK = 2_000_000


@dataclass(frozen=True, eq=False)
class Block:
    """Replicates `first`, `first` + 1, ...: each array (rows, replicates) or broadcast to it.

    y : replicated responses. mean, sd : of the response given the parameters and effects that made them.
    no_count : makes the log of the probability of a response of 0.
    """

    first: int
    y: Array
    mean: Array
    sd: Array
    no_count: Callable[[], Array]

    def residuals(self, y: Array) -> Array:
        """Standardised residuals at each replicate's own parameters, of replicated or of observed responses."""
        return np.asarray((y - self.mean) / self.sd)


def replicates_used(fit: Posterior, asked: int | None) -> Ints:
    """Which of the fit's draws have a replicate."""
    total, rows = len(fit.result.draws_theta), fit.model.design.n_rows
    if asked is not None:
        if isinstance(asked, bool) or not isinstance(asked, int | np.integer) or asked < 50:
            raise ModelError(f"draws = {asked!r} is not possible; ask for a whole number of at least 50, such as 1000.")
        if asked > total:
            raise ModelError(f"The fit has {total:,} draws; ask for at most as many, or fit again with draws={asked}.")
        count = int(asked)
    else:
        count = min(DEFAULT, max(FEWEST, MOST // max(rows, 1)))
        factors = range(len(fit.model.design.factors))
        if factors:
            predictor = LinearPredictor.of_design(fit.model.design, factors)
            count = min(count, len(draws_used(fit, predictor, None)))
            count = min(count, max(50, MOST_EFFECTS // max(layout_of(fit.model).n_effects, 1)))
        count = min(count, total)
    if fit.result.chains:  # in their order: some of each
        return np.linspace(0, total - 1, count).astype(np.int64)
    return np.arange(count, dtype=np.int64)


@dataclass(frozen=True, eq=False)
class Replicates:
    """Replicated responses of the rows of a fit.

    draws : (D,) the draws of the posterior behind them. renewed : factors whose groups are new ones. seed : of the
    noise and of new groups.
    """

    fit: Posterior
    draws: Ints
    renewed: frozenset[int] = frozenset()
    seed: int = 0

    @classmethod
    def of(cls, fit: Posterior, draws: Ints, new: int | None, all_new: bool, seed: int) -> Replicates:
        """`new` : the factor whose groups are new ones, with all that nests in them; `all_new` : those of all."""
        count = len(fit.model.design.factors)
        if all_new:
            renewed = frozenset(range(count))
        elif new is None:
            renewed = frozenset()
        else:
            renewed = frozenset(f for f in range(count) if f == new or new in coarser_factors(fit.model, f))
        return cls(fit, draws, renewed, seed)

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.draws)

    @property
    def size(self) -> int:
        """Replicates in a block."""
        return max(1, min(self.count, BLOCK // max(self.fit.model.design.n_rows, 1)))

    def stream(self, *key: int) -> np.random.Generator:
        """Random numbers of the seed."""
        return np.random.Generator(np.random.SFC64(np.random.SeedSequence(self.seed, spawn_key=key)))

    @property
    def theta(self) -> Array:
        """The hyperparameters behind them, (D, d)."""
        return self.fit.result.draws_theta[self.draws]

    @cached_property
    def known(self) -> Replicates:
        """Those of the same groups."""
        return Replicates(self.fit, self.draws, frozenset(), self.seed) if self.renewed else self

    @cached_property
    def moments(self) -> tuple[Array, Array, Array, Array]:
        """See `predictor_moments`."""
        return predictor_moments(self)

    # -- effects ----------------------------------------------------------------------------------------------------

    @cached_property
    def known_effects(self) -> list[Array]:
        """By factor, draws of the effects of its groups given the data, (groups, q, D)."""
        fit = self.fit
        positions = [layout_of(fit.model).effects_of(f) for f in range(len(fit.model.design.factors))]
        if not positions:
            return []
        flat = np.concatenate([at.ravel() for at in positions])
        drawn = effect_draws(fit, self.draws).of(flat)
        parts = np.split(drawn, np.cumsum([at.size for at in positions])[:-1], axis=1)
        return [
            np.ascontiguousarray(part.T).reshape(*at.shape, self.count)
            for part, at in zip(parts, positions, strict=True)
        ]

    @cached_property
    def effects(self) -> list[Array]:
        """The same, those of new groups from their population."""
        return [
            self._population(f) if f in self.renewed else self.known_effects[f]
            for f in range(len(self.fit.model.design.factors))
        ]

    def _population(self, factor: int) -> Array:
        hyper = self.fit.model.hyperparameters
        width, start = hyper.widths[factor], hyper.lam_at[factor]
        lams = hyper.factors(self.fit.result.draws_theta[self.draws])[:, start : start + width * width]
        groups = len(self.fit.model.design.factors[factor].labels)
        z = self.stream(POPULATION, factor).standard_normal((groups, width, self.count))
        return np.asarray(np.einsum("dij,gjd->gid", lams.reshape(-1, width, width), z))

    # -- blocks -----------------------------------------------------------------------------------------------------

    def blocks(self) -> Iterator[Block]:
        """Yield all replicates, block by block."""
        size = self.size
        with Progress(self.fit.result.settings.progress) as progress:
            for number, first in enumerate(range(0, self.count, size)):
                progress.update(first / self.count, "replicates")
                yield self._block(number, slice(first, min(first + size, self.count)))

    def _block(self, number: int, part: slice) -> Block:
        model = self.fit.model
        rng = self.stream(NOISE, number)
        eta = self._predictor(0, part, self.effects)
        if model.exact:
            sd = self._gaussian_sd(part)
            return Block(part.start, eta + sd * rng.standard_normal(eta.shape), eta, sd, lambda: np.zeros(eta.shape))
        first, second = self._own(part)
        trials = model.design.trials
        number_of = None if trials is None else trials[:, None]
        y = model.family.simulate(rng, eta, first, second, number_of)
        mean, sd = response_moments(model.family, eta, first, second, number_of)
        nothing = np.zeros(eta.shape)
        number_each = None if number_of is None else np.broadcast_to(number_of, eta.shape)
        return Block(
            part.start, y, mean, sd,
            lambda: model.family.log_density_rows(nothing, eta, first, second, number_each),
        )  # fmt: skip

    def predictors(self) -> Iterator[tuple[slice, Array, Any]]:
        """Yield the linear predictor of the mean given the data (rows, d) and of the family's first own parameter."""
        size = self.size
        for first in range(0, self.count, size):
            part = slice(first, min(first + size, self.count))
            own = 0.0 if self.fit.model.exact else self._own(part, known=True)[0]
            yield part, self._predictor(0, part, self.known_effects), own

    @cached_property
    def _rows(self) -> list[tuple[LinearPredictor, Array]]:
        """By linear predictor, its rows, and the columns of its coefficients (n, p), made once."""
        design = self.fit.model.design
        factors = range(len(design.factors))
        found = [LinearPredictor.of_design(design, factors, k) for k in range(len(design.prefixes))]
        return [(rows, np.ascontiguousarray(rows.V[:, rows.x_columns])) for rows in found]

    def _predictor(self, which: int, part: slice, effects: list[Array]) -> Array:
        rows, x = self._rows[which]
        every = np.arange(rows.n_rows, dtype=np.int64)
        beta = self.fit.result.draws_beta[self.draws[part]]
        eta = x @ (beta if rows.coefficients is None else beta[:, rows.coefficients]).T
        if rows.offset is not None:
            eta += rows.offset[:, None]
        for factor in rows.factors:
            self._add(rows, eta, factor, np.ascontiguousarray(effects[factor.factor][:, :, part]), every)
        return eta

    @staticmethod
    def _add(rows: LinearPredictor, eta: Array, factor: FactorRows, effects: Array, every: Ints) -> None:
        rows.add_effects(eta, factor, effects, factor.codes.astype(np.int64), every)

    def _gaussian_sd(self, part: slice) -> Array:
        model = self.fit.model
        at = model.hyperparameters.sigma_at
        theta = self.fit.result.draws_theta[self.draws[part]]
        square = np.zeros(len(theta)) if at is None else np.exp(2 * theta[:, at])
        variance = row_variance(model.design, model.design.se_sigma)
        known, share = np.atleast_1d(variance.known), np.atleast_1d(variance.share)
        return np.asarray(np.sqrt(known[:, None] + square * share[:, None]))

    def _own(self, part: slice, known: bool = False) -> tuple[Any, Any]:
        """eta1 and eta2: (rows, d), (1, d), or 0 where the family has none."""
        model = self.fit.model
        theta = self.fit.result.draws_theta[self.draws[part]]
        constant = {name for name, _ in model.hyperparameters.auxiliary}
        out: list[Any] = []
        for name in model.family.parameters:
            if name in constant:
                out.append(theta[None, :, model.hyperparameters.auxiliary_at(name)])
            else:
                out.append(self._predictor(1, part, self.known_effects if known else self.effects))
        out += [0.0, 0.0]
        return out[0], out[1]


def response_moments(family: Any, eta: Array, first: Any, second: Any, trials: Any) -> tuple[Array, Array]:
    """Mean and sd of responses (counts where there are trials); of a Student-t one, place and scale.

    Its sd is infinite up to two degrees of freedom.
    """
    mean = family.mean(eta, first, second) * (1.0 if trials is None else trials)
    if family.name == "student_t":
        return mean, np.exp(np.asarray(first))
    sd = np.sqrt(np.maximum(family.variance(eta, first, second, trials), np.finfo(float).tiny))
    return mean, sd


def predictor_moments(replicates: Replicates) -> tuple[Array, Array, Array, Array]:
    """Mean and variance (n,) of each row's linear predictor, means of the family's own parameters (logs, (n,)).

    The variance is that which is left when a quadratic in the hyperparameters is taken off: on average that given them.
    """
    fit = replicates.fit
    theta = fit.result.draws_theta[replicates.draws]
    basis = theta_basis(theta)
    n = fit.model.design.n_rows
    origin: Array | None = None
    sums, squares, own = np.zeros((n, basis.shape[1])), np.zeros(n), np.zeros(n)
    for part, eta, first in replicates.predictors():
        if origin is None:
            origin = eta.mean(axis=1)
        eta -= origin[:, None]
        sums += eta @ basis[part]
        squares += np.einsum("ij,ij->i", eta, eta)
        own += np.sum(np.broadcast_to(first, eta.shape), axis=1)
    assert origin is not None
    count = len(theta)
    variance = np.maximum(squares - (sums**2).sum(axis=1), 0.0) / max(count - basis.shape[1], 1)
    second = 0.0
    names = fit.model.family.parameters
    if not fit.model.exact and len(names) > 1:
        second = float(theta[:, fit.model.hyperparameters.auxiliary_at(names[1])].mean())
    return origin + sums[:, 0] / np.sqrt(count), variance, own / count, np.full(n, second)


def theta_basis(theta: Array) -> Array:
    """Orthonormal columns (D, r): 1, and hyperparameters and their squares where there are draws enough."""
    columns = [np.ones(len(theta))]
    spread = theta.std(axis=0)
    centred = ((theta - theta.mean(axis=0)) / np.where(spread > 0, spread, 1.0))[:, spread > 0]
    if 20 * (1 + centred.shape[1]) <= len(theta):
        columns.extend(centred.T)
        if 20 * (1 + 2 * centred.shape[1]) <= len(theta):
            columns.extend((centred**2).T)
    q, _ = np.linalg.qr(np.column_stack(columns))
    return np.asarray(q * np.where(q[0, :1] < 0, -1.0, 1.0))
