r"""The reference engine: NUTS on the whole model, nothing integrated out.

Slow and simple on purpose: it shares neither cross-products nor eliminations with the other engines, and so checks
them. The density is computed row by row (`algebra.rows`); a Student-t prior of a coefficient enters as its own density,
with no mixing scale. Group effects are non-centred, :math:`u_g = \Lambda z_g`, unless their groups' own rows say most
about them: then the sampler moves in u itself (Papaspiliopoulos, Roberts and Sköld, 2007, A general framework for the
parametrization of hierarchical models, Statistical Science 22, 59-73). Where that is so of every term of a small model,
the linear unknowns are also rotated by their curvature at the mode of theta. Such coordinates change the speed and not
the target.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from partialpool.algebra import rows
from partialpool.design.predictor import factor_columns
from partialpool.errors import InferenceError
from partialpool.inference.base import Result, Settings
from partialpool.inference.coded import coded_hyperparameters
from partialpool.inference.nuts import CHAINS, Density, Grown, Plan, sample_until, thinned, whole_model_result
from partialpool.inference.parameterization import term_names, told, wanted_degrees
from partialpool.inference.target import Target
from partialpool.model import Model

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

TUNE = 1000
#: Draws a chain of the first run, and how many times as many a longer run may take.
FIRST = 1000
LONGEST = 20
#: Group effects whose chains are checked; in a larger model as many, evenly spread.
CHECKED_EFFECTS = 400
TARGET_ACCEPT = 0.9
#: A term whose groups take less than this share of their estimate from the population is centred.
CENTRED_BELOW = 0.3
#: Linear unknowns (coefficients and effects) up to which they are rotated.
MOST_ROTATED = 300


class ReferenceEngine:
    """NUTS on hyperparameters, coefficients and every group effect; see the module."""

    name = "nuts"

    def run(self, model: Model, settings: Settings) -> Result:
        """Four chains, run on until every parameter's bulk and tail effective sample size is ``settings.ess``."""
        began = time.perf_counter()
        whole = WholeModel(model, settings.parameterization)
        first = max(FIRST, math.ceil(settings.draws / CHAINS))
        plan = Plan(
            first, LONGEST * first, settings.ess, TUNE, settings.seed, settings.threads, settings.progress,
            TARGET_ACCEPT,
        )  # fmt: skip
        checked = whole.checked_effects()
        grown = sample_until(
            whole.density, whole.dimension, whole.initial, lambda positions: whole.quantities(positions, checked), plan
        )
        return _result(whole, grown, checked, settings, began)


def _result(whole: WholeModel, grown: Grown, checked: Ints, settings: Settings, began: float) -> Result:
    model, chains = whole.model, grown.chains
    rng = np.random.default_rng([settings.seed, 1])
    stacked = whole.unknowns(chains.stacked())
    theta, gamma = whole.theta(stacked, rng), whole.gamma(stacked)
    ran = f"{chains.positions.shape[0]} chains of {chains.draws:,} draws in {whole.dimension:,} dimensions"
    return whole_model_result(
        grown, settings, began, names=model.parameter_names, checked=checked, theta=theta,
        beta=model.coefficients.to_public(gamma), effects=lambda kept: whole.effects(stacked[kept]),
        n_effects=whole.n_effects, steps=[ran, whole.coordinates], parameterization=whole.parameterization,
    )  # fmt: skip


class WholeModel:
    """The density of all unknowns of a model, ``[t, b, z]``, and what they mean.

    t is theta without mixing scales; where the prior of an sd has a bounded support (Uniform, Beta), its t is the logit
    of where in the support it lies, else its log.
    """

    def __init__(self, model: Model, parameterization: Mapping[str, str | float] | None = None) -> None:
        self.model = model
        wanted = wanted_degrees(model, parameterization, between=False)
        hyper, coefficients = model.hyperparameters, model.coefficients
        self.structure = model.row_blocks.structure
        self.n_t = hyper.size - len(hyper.mixtures)
        self.p = len(coefficients.names)
        self.n_effects = self.structure.n_effects
        self.dimension = self.n_t + self.p + self.n_effects
        self.sigma_at = -1 if hyper.sigma_at is None else hyper.sigma_at
        self.kinds, self.params = coded_hyperparameters(model, self.n_t)
        self.mean = np.asarray(coefficients.mean, dtype=float)
        self.b_kinds, self.b_params, self.scale = self._coded_coefficients()
        self.terms = self._terms()
        self._read_rows()
        self.start = self._starting_point()
        chosen = self._is_centred()
        self.terms[:, rows.CENTRED] = [
            own if degree is None else degree == 1.0 for own, degree in zip(chosen, wanted, strict=True)
        ]
        self.origin = np.zeros(self.dimension - self.n_t)
        self.rotation = self._rotation()

    # -- arrays for the kernel --------------------------------------------------------------------------------------

    def _coded_coefficients(self) -> tuple[Ints, Array, Array]:
        """Kinds and parameters of the priors of b, and the scale of gamma: that of its prior, or of the data."""
        model, coefficients = self.model, self.model.coefficients
        scale = np.asarray(coefficients.scale, dtype=float).copy()
        kinds = np.full(self.p, rows.NORMAL, dtype=np.int64)
        params = np.tile(np.array([0.0, 1.0, 0.0]), (self.p, 1))
        for mixture in model.hyperparameters.mixtures:
            kinds[mixture.coefficient] = rows.STUDENT
            params[mixture.coefficient] = mixture.nu, 0.0, 1.0
        spread = float(np.std(model.design.y)) or 1.0
        for j in np.flatnonzero(np.asarray(coefficients.proper) == 0):
            kinds[j] = rows.FLAT
            column = model.design.V[:, model.design.x_columns[j]]
            scale[j] = spread / (float(np.std(column)) or 1.0)  # any scale does; this one starts near the answer
        return kinds, params, scale

    def _terms(self) -> Ints:
        table = np.zeros((len(self.model.hyperparameters.terms), 7), dtype=np.int64)
        for row, term in zip(table, self.model.hyperparameters.terms, strict=True):
            width, groups = self.structure.widths[term.factor], self.structure.sizes[term.factor]
            first = self.structure.effect_at[term.factor] + term.offset
            q = term.covariance.size
            row[:] = term.at, q, term.covariance.n_correlations > 0, width, first, groups, False
        return table

    def _read_rows(self) -> None:
        # copies throughout: the design's arrays are read-only, which the kernel's types are not
        design, coefficients = self.model.design, self.model.coefficients
        n = design.y.size
        self.y = np.array(design.y if design.offset is None else design.y - design.offset, dtype=float)
        self.x = np.array(design.V[:, design.x_columns] - np.asarray(coefficients.centre), dtype=float, order="C")
        columns = factor_columns(design)
        every = np.concatenate([*columns, np.empty(0, dtype=np.int64)])
        self.z = np.array(design.V[:, every], dtype=float, order="C")
        self.pointer = np.cumsum([0, *(own.size for own in columns)]).astype(np.int64)
        self.group_at = np.empty((len(columns), n), dtype=np.int64)
        for f, factor in enumerate(design.factors):
            self.group_at[f] = self.structure.effects_of(f)[factor.codes, 0]
        self.known = np.zeros(n) if design.se is None else np.array(design.se, dtype=float) ** 2
        self.count = np.ones(n) if design.weights is None else np.array(design.weights, dtype=float)
        self.precision = np.ones(n) if design.precision is None else np.array(design.precision, dtype=float)
        self.has_known = design.se is not None

    # -- the density ------------------------------------------------------------------------------------------------

    def log_density(self) -> Density:
        """The log density of the unknowns (up to a constant) and its gradient, with a workspace of its own."""
        gradient = np.zeros(self.dimension)
        u, in_u = np.zeros(self.n_effects), np.zeros(self.n_effects)
        before = (self.y, self.x, self.z, self.group_at, self.pointer, self.known, self.count, self.precision)
        priors = (self.kinds, self.params, self.sigma_at, self.b_kinds, self.b_params, self.mean, self.scale)
        kernel: Any = rows.whole_model

        def evaluate(point: Array) -> tuple[float, Array]:
            value = kernel(point, gradient, *before, self.has_known, self.terms, *priors, u, in_u)
            return float(value), gradient

        return evaluate

    def density(self) -> Density:
        """The same in the sampler's coordinates: t, and the linear unknowns rotated."""
        evaluate, rotation, n_t = self.log_density(), self.rotation, self.n_t
        point = np.empty(self.dimension)
        if rotation.ndim == 1:

            def scaled(position: Array) -> tuple[float, Array]:
                point[:n_t] = position[:n_t]
                point[n_t:] = rotation * position[n_t:]
                value, gradient = evaluate(point)
                gradient[n_t:] *= rotation
                return value, gradient

            return scaled

        def rotated(position: Array) -> tuple[float, Array]:
            point[:n_t] = position[:n_t]
            point[n_t:] = self.origin + rotation @ position[n_t:]
            value, gradient = evaluate(point)
            gradient[n_t:] = gradient[n_t:] @ rotation
            return value, gradient

        return rotated

    def unknowns(self, positions: Array) -> Array:
        """``[t, b, z]`` (K, dimension) from the sampler's positions."""
        linear = positions[:, self.n_t :]
        moved = linear * self.rotation if self.rotation.ndim == 1 else linear @ self.rotation.T
        return np.concatenate([positions[:, : self.n_t], self.origin + moved], axis=1)

    def initial(self, rng: np.random.Generator) -> Array:
        """A start spread wider than the posterior.

        About half the chains start near the mode that the other engines find, the others where only the scale of the
        data leads: chains that end apart show in R-hat, should that mode be a wrong one.
        """
        point = rng.uniform(-1.0, 1.0, self.dimension)
        point[: self.n_t] += self.start if rng.random() < 0.5 else self._crude_start()
        return point

    # -- coordinates ------------------------------------------------------------------------------------------------

    def _starting_point(self) -> Array:
        """t at the mode of the marginal posterior; where that cannot be found, sds at a third of the response's."""
        try:
            target = Target(self.model, threads=1)
            phi = target.mode().point
            mode = target.coordinates.theta(phi[None, :])[0]
            for column in target.coordinates.bounds:  # here too a bounded sd is a logit
                mode[column] = phi[column]
            if np.isfinite(mode[: self.n_t]).all():
                return np.asarray(mode[: self.n_t])
        except (InferenceError, np.linalg.LinAlgError):
            pass
        return self._crude_start()

    def _crude_start(self) -> Array:
        """t with sds at a third of the response's over the size of the column, and no correlation."""
        spread = float(np.std(self.y)) or 1.0
        start = np.zeros(self.n_t)
        for term, group in zip(self.model.hyperparameters.terms, self.model.design.groups, strict=True):
            for k, column in enumerate(group.columns):
                size = float(np.sqrt(np.mean(self.model.design.V[:, column] ** 2))) or 1.0
                start[term.at + k] = math.log(spread / 3 / size)
        if self.sigma_at >= 0:
            start[self.sigma_at] = math.log(spread)
        start[self.params[:, 4] > 0] = 0.0
        return start

    def _sds(self) -> Array:
        """Group sds and sigma at the starting point, by position in t (correlations: whatever)."""
        bounded = self.params[:, 4] > 0
        share = self.params[:, 3] + self.params[:, 4] / (1 + np.exp(-self.start))
        return np.where(bounded, share, np.exp(np.minimum(self.start, 700.0)))

    def _is_centred(self) -> NDArray[np.bool_]:
        """By term, whether the rows say most about its effects at the starting point."""
        variance = self._variance_of_z()
        out = []
        for term in self.model.hyperparameters.terms:
            own = self.structure.effects_of(term.factor)[:, term.offset : term.offset + term.covariance.size]
            out.append(float(np.mean(variance[own])) < CENTRED_BELOW)
        return np.array(out, dtype=bool)

    def _variance_of_z(self) -> Array:
        """Var(z | y, t) of every non-centred effect at the starting point: the share taken from the population.

        In a small model all linear unknowns are integrated out; in a large one each z is taken alone.
        """
        if self.dimension - self.n_t <= MOST_ROTATED:
            try:
                hessian = self._hessian(np.ones(self.dimension - self.n_t))[0]
                return np.asarray(np.linalg.inv(hessian).diagonal()[self.p :], dtype=np.float64)
            except np.linalg.LinAlgError:
                pass
        sds = self._sds()
        weight = self.count * self.precision / (self.known + (sds[self.sigma_at] ** 2 if self.sigma_at >= 0 else 0.0))
        precision = np.ones(self.n_effects)
        for term in self.model.hyperparameters.terms:
            for k in range(term.covariance.size):
                column = self.z[:, self.pointer[term.factor] + term.offset + k] * sds[term.at + k]
                at = self.group_at[term.factor] + term.offset + k
                precision += np.bincount(at, weight * column**2, self.n_effects)
        return np.asarray(1 / precision)

    def _rotation(self) -> Array:
        """A factor of the linear unknowns' covariance given t at the start (d, d); in a large model their scales (d,).

        Given t the density is quadratic in them (but for Student-t priors), so that one Newton step finds its mode, the
        new origin.
        """
        size = self.dimension - self.n_t
        scales = np.ones(size)
        sds = self._sds()
        for term, row in zip(self.model.hyperparameters.terms, self.terms, strict=True):
            own = self.structure.effects_of(term.factor)[:, term.offset : term.offset + term.covariance.size]
            scales[self.p + own] = sds[term.at : term.at + term.covariance.size] if row[rows.CENTRED] else 1.0
        # where z is non-centred the ridges between z and the sds are curved, and a rotation does not straighten them
        if not 0 < size <= MOST_ROTATED or not self.terms[:, rows.CENTRED].all():
            return scales
        hessian, slope = self._hessian(scales)
        try:
            low = np.linalg.cholesky(hessian)
        except np.linalg.LinAlgError:
            return scales
        factor = np.linalg.inv(low).T
        self.origin = scales * (factor @ (factor.T @ slope))
        return np.ascontiguousarray(scales[:, None] * factor)

    def _hessian(self, scales: Array) -> tuple[Array, Array]:
        """Negative Hessian (d, d) and gradient (d,) in the linear unknowns over `scales`, where they are 0."""
        evaluate, n_t = self.log_density(), self.n_t
        point = np.zeros(self.dimension)
        point[:n_t] = self.start
        slope = evaluate(point)[1][n_t:] * scales
        hessian = np.empty((scales.size, scales.size))
        for j in range(scales.size):
            point[n_t + j] = 1e-3 * scales[j]
            up = evaluate(point)[1][n_t:].copy()
            point[n_t + j] *= -1
            hessian[j] = (evaluate(point)[1][n_t:] - up) * scales / 2e-3
            point[n_t + j] = 0.0
        return 0.5 * (hessian + hessian.T), slope

    # -- what the unknowns mean ---------------------------------------------------------------------------------------

    def theta(self, positions: Array, rng: np.random.Generator) -> Array:
        """theta (K, d); mixing scales are drawn from their conditional distribution given the coefficient."""
        hyper = self.model.hyperparameters
        theta = np.empty((positions.shape[0], hyper.size))
        theta[:, : self.n_t] = positions[:, : self.n_t]
        for j in np.flatnonzero(self.params[:, 4] > 0):
            low, width = self.params[j, 3:5]
            theta[:, j] = np.log(low + width / (1 + np.exp(-positions[:, j])))
        for column, mixture in zip(range(hyper.size)[hyper.mixture_slice()], hyper.mixtures, strict=True):
            b = positions[:, self.n_t + mixture.coefficient]
            rate = 0.5 * (mixture.nu + b * b)
            theta[:, column] = np.log(rate / rng.gamma(0.5 * (mixture.nu + 1), 1.0, b.size))
        return theta

    def gamma(self, positions: Array) -> Array:
        """Coefficients (K, p) on the engines' scale."""
        return np.asarray(self.mean + self.scale * positions[:, self.n_t : self.n_t + self.p])

    def effects(self, positions: Array, only: Ints | None = None) -> Array:
        """Group effects (K, effects), or those at the positions `only`, in the internal order."""
        hyper = self.model.hyperparameters
        wanted = np.arange(self.n_effects) if only is None else only
        theta = np.zeros((positions.shape[0], hyper.size))
        theta[:, : self.n_t] = self.theta(positions, np.random.default_rng(0))[:, : self.n_t]
        lams = hyper.factors(theta)
        z = positions[:, self.n_t + self.p :]
        out = np.empty((positions.shape[0], wanted.size))
        centred: list[set[int]] = [set() for _ in self.structure.widths]
        for term, row in zip(hyper.terms, self.terms, strict=True):
            if row[rows.CENTRED]:
                centred[term.factor] |= set(range(term.offset, term.offset + term.covariance.size))
        for factor, (width, groups) in enumerate(zip(self.structure.widths, self.structure.sizes, strict=True)):
            start, lam_at = self.structure.effect_at[factor], hyper.lam_at[factor]
            lam = lams[:, lam_at : lam_at + width * width].reshape(-1, width, width)
            own = np.flatnonzero((wanted >= start) & (wanted < start + groups * width))
            for i in range(width):
                here = own[(wanted[own] - start) % width == i]
                block = wanted[here] - i
                if i in centred[factor]:
                    out[:, here] = z[:, wanted[here]]
                else:
                    out[:, here] = sum(lam[:, i, j, None] * z[:, block + j] for j in range(i + 1))
        return out

    @property
    def parameterization(self) -> dict[str, str]:
        """How every group term is parameterized, in words."""
        degrees = self.terms[:, rows.CENTRED].astype(float).tolist()
        return {name: told(degree) for name, degree in zip(term_names(self.model), degrees, strict=True)}

    @property
    def coordinates(self) -> str:
        """Which group terms are centred, in words."""
        texts = [group.text for group in self.model.design.groups]
        centred = [text for text, row in zip(texts, self.terms, strict=True) if row[rows.CENTRED]]
        others = [text for text, row in zip(texts, self.terms, strict=True) if not row[rows.CENTRED]]
        parts = [f"{name}: {', '.join(own)}" for name, own in (("non-centred", others), ("centred", centred)) if own]
        return "; ".join(parts) or "no group effects"

    def checked_effects(self) -> Ints:
        """Positions of the group effects whose chains are checked."""
        if self.n_effects <= CHECKED_EFFECTS:
            return np.arange(self.n_effects)
        return thinned(self.n_effects, CHECKED_EFFECTS)

    def quantities(self, positions: Array, effects: Ints) -> Array:
        """Public parameters, in the order of `summary()`, and the group effects named, (chains, draws, q)."""
        stacked = self.unknowns(positions.reshape(-1, self.dimension))
        theta = self.theta(stacked, np.random.default_rng(0))
        beta = self.model.coefficients.to_public(self.gamma(stacked))
        public = self.model.hyperparameters.public(theta)
        values = np.concatenate([beta, public, self.effects(stacked, effects)], axis=1)
        return values.reshape(*positions.shape[:2], values.shape[1])
