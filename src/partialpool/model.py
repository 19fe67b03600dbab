"""A model: design, family and priors, and the layout of its hyperparameters. Nothing is fitted here."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from partialpool.design.crossprod import RowBlocks, build_row_blocks
from partialpool.design.design import Design, GroupDesign, build_design
from partialpool.design.predictor import factor_columns
from partialpool.errors import DataError, ModelError, PriorError, did_you_mean
from partialpool.spec.covariance import TermCovariance
from partialpool.spec.distributions import LKJ, Cauchy, Distribution, Flat, HalfStudentT, Normal, StudentT
from partialpool.spec.families import Gaussian, resolve_family
from partialpool.spec.formula import parse_formula
from partialpool.spec.hyperparameters import Hyperparameters, Mixture, TermLayout
from partialpool.spec.priors import PriorTable, Slot, resolve_priors

if TYPE_CHECKING:
    import pandas

    from partialpool.inference.optimum import MaximumLikelihood
    from partialpool.posterior.posterior import Posterior

Array = NDArray[np.float64]

INTERCEPT = "Intercept"


@dataclass(frozen=True)
class Coefficients:
    """How the public coefficients relate to those that the engines integrate out.

    The engines work with ``gamma = beta`` but for the intercept, ``gamma_0 = beta_0 + sum_j centre_j beta_j``: the
    intercept at the centre of the predictors; gamma has independent priors with location `mean` and scale `scale`.

    Attributes
    ----------
    names : public names. intercept : position of the intercept, or None. centre : (p,) what is taken from each column.
    mean, scale : (p,) prior location and scale of gamma (0 and 1 where flat). proper : (p,) 0 where flat.
    """

    names: tuple[str, ...]
    intercept: int | None
    centre: tuple[float, ...]
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    proper: tuple[float, ...]

    def to_public(self, gamma: Array) -> Array:
        """beta (..., p) from gamma (..., p)."""
        if self.intercept is None:
            return gamma
        beta = np.array(gamma, dtype=float)
        beta[..., self.intercept] -= gamma @ np.asarray(self.centre)
        return beta

    def from_public(self, beta: Array) -> Array:
        """gamma (..., p) from beta (..., p)."""
        if self.intercept is None:
            return beta
        gamma = np.array(beta, dtype=float)
        gamma[..., self.intercept] += beta @ np.asarray(self.centre)
        return gamma

    def public_matrix(self) -> Array:
        """The matrix that takes gamma to beta."""
        return self.to_public(np.eye(len(self.names))).T


@dataclass(frozen=True, eq=False)
class Model:
    """A hierarchical model of given data, ready to be fitted. Made by :meth:`from_formula`.

    Attributes
    ----------
    design : Design
        Response, predictors and groups as arrays.
    priors : PriorTable
        The priors in force, by parameter.
    family : Gaussian
        The distribution of the response.

    Examples
    --------
    >>> import partialpool as pp
    >>> model = pp.Model.from_formula("Reaction ~ Days + (Days | Subject)", pp.datasets.load("sleepstudy"))
    >>> round(model.maximum_likelihood().log_likelihood, 2)
    -875.97
    """

    design: Design
    priors: PriorTable
    family: Gaussian = field(default_factory=Gaussian)

    @classmethod
    def from_formula(
        cls,
        formula: str,
        data: Any,
        *,
        family: str | Gaussian = "gaussian",
        priors: Mapping[str, Distribution | str] | None = None,
    ) -> Model:
        """Read a formula, encode the data it names, and set the priors.

        Parameters
        ----------
        formula : str
            An lme4 or brms formula, ``"y ~ x + (1 + x | g)"``.
        data : data frame, pyarrow table, dict of arrays, or path of a CSV or Parquet file
        family : str
            The distribution of the response; ``"gaussian"``.
        priors : mapping, optional
            Priors by name, ``{"sd(g)": pp.HalfNormal(1)}``; the others keep their defaults (see ``model.priors``).

        Raises
        ------
        FormulaError, DataError, PriorError
            With what is wrong, where, and how to mend it.
        """
        resolved = resolve_family(family)
        design = build_design(parse_formula(formula), data, family=resolved.name)
        if design.terms.response.trials is not None:
            raise ModelError("trials() belongs to a binomial response, which this version does not fit yet; remove it.")
        table = resolve_priors(priors, prior_slots(design))
        _refuse_improper(design, table)
        return cls(design, table, resolved)

    # -- layout ---------------------------------------------------------------------------------------------------

    @cached_property
    def coefficients(self) -> Coefficients:
        """The public coefficients and their priors, as the engines use them."""
        names = self.design.x_names
        intercept = names.index(INTERCEPT) if INTERCEPT in names else None
        centre = self._centre
        rows = [_location_scale(name, self.priors[name]) for name in names]
        mean = [row[0] for row in rows]
        if intercept is not None and not rows[intercept][2]:
            mean[intercept] = float(np.mean(self._working_response()))  # any origin does under a flat prior
        return Coefficients(
            names, intercept, tuple(centre), tuple(mean), tuple(row[1] for row in rows), tuple(row[2] for row in rows)
        )

    @cached_property
    def column_means(self) -> Array:
        """Mean of each predictor, 0 for the intercept."""
        names, design = self.design.x_names, self.design
        return np.array(
            [0.0 if name == INTERCEPT else _moments(design.V[:, column], design)[0]
             for name, column in zip(names, design.x_columns, strict=True)]
        )  # fmt: skip

    @cached_property
    def hyperparameters(self) -> Hyperparameters:
        """The layout and the prior of theta."""
        terms, sds, correlations = [], [], []
        at = 0
        structure = self.row_blocks.structure
        offsets = _offsets(self.design)
        for group, offset in zip(self.design.groups, offsets, strict=True):
            covariance = TermCovariance(len(group.names), group.correlated and len(group.names) > 1)
            factor_name = self.design.factors[group.factor].name
            term = TermLayout(covariance, group.factor, factor_name, group.names, offset, at)
            terms.append(term)
            sds.append(tuple(self.priors[name] for name in term.sd_names))
            lkj = self.priors[correlation_slot(self.design, group)] if covariance.n_correlations else None
            correlations.append(lkj if isinstance(lkj, LKJ) else None)
            at += covariance.n_parameters
        mixtures = []
        for column, name in enumerate(self.design.x_names):
            nu = _degrees_of_freedom(self.priors[name])
            if nu is not None:
                mixtures.append(Mixture(column, nu))
        sigma = self.priors["sigma"] if self.has_sigma else None
        return Hyperparameters(
            tuple(terms), structure.widths, structure.lam_at, tuple(sds), tuple(correlations), sigma, tuple(mixtures)
        )

    @property
    def has_sigma(self) -> bool:
        """Whether the residual sd is estimated (it is not where `se()` gives it)."""
        return self.design.se is None or self.design.se_sigma

    @cached_property
    def row_blocks(self) -> RowBlocks:
        """Where the rows' cross-products go, columns centred at the means of the predictors (with an intercept)."""
        return self._row_blocks(np.asarray(self._centre))

    @property
    def _centre(self) -> Array:
        centred = INTERCEPT in self.design.x_names and self.priors.matched_key(INTERCEPT) != INTERCEPT
        return self.column_means if centred else np.zeros(len(self.design.x_names))

    def _row_blocks(self, centre: Array) -> RowBlocks:
        design = self.design
        return build_row_blocks(
            design.V, design.x_columns, centre, [factor.codes for factor in design.factors],
            [len(factor.labels) for factor in design.factors], factor_columns(design),
        )  # fmt: skip

    def _working_response(self) -> Array:
        design = self.design
        return design.y if design.offset is None else design.y - design.offset

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """The names of `summary()`: coefficients, then sds, correlations and sigma."""
        return (*self.design.x_names, *self.hyperparameters.names)

    def with_response(self, y: ArrayLike) -> Model:
        """The same model, priors included, of another response on the same rows (for simulation and refits)."""
        response = np.ascontiguousarray(y, dtype=float)
        if response.shape != self.design.y.shape:
            raise DataError(f"The new response has shape {response.shape}; the model has {self.design.y.size} rows.")
        if not np.isfinite(response).all():
            first = int(np.flatnonzero(~np.isfinite(response))[0])
            raise DataError(f"The new response is not finite in row {first}.")
        other = Model(replace(self.design, y=response), self.priors, self.family)
        other.__dict__["column_means"] = self.column_means
        other.__dict__["row_blocks"] = self.row_blocks
        return other

    # -- doors to later rooms ---------------------------------------------------------------------------------------

    def fit(self, **options: Any) -> Posterior:
        """Fit the model; the options are those of :func:`partialpool.fit`."""
        from partialpool.posterior.posterior import fit_model

        return fit_model(self, **options)

    def log_likelihood(self, params: Mapping[str, float]) -> float:
        """log p(y | coefficients, hyperparameters), the group effects integrated out.

        Parameters
        ----------
        params : mapping
            A value for every name of `parameter_names`: coefficients, sds, correlations, sigma.

        Raises
        ------
        ModelError
            Where a value is missing or impossible.
        """
        from partialpool.inference.gaussian import log_likelihood

        return log_likelihood(self, params)

    def maximum_likelihood(
        self, reml: bool = False, nodes: int | None = None, threads: int | None = None
    ) -> MaximumLikelihood:
        """The point estimate of lme4: maximum likelihood, or restricted maximum likelihood with ``reml=True``.

        Parameters
        ----------
        reml : bool
            Integrate the coefficients out under a flat prior (REML).
        nodes : int, optional
            Quadrature nodes for other families; a Gaussian response is exact and takes none.
        threads : int, optional
            Cores to use; all by default.
        """
        from partialpool.inference.optimum import maximum_likelihood

        if nodes is not None:
            raise ModelError("nodes= is for responses that need quadrature; with a Gaussian response leave it out.")
        return maximum_likelihood(self, reml=reml, threads=threads or os.cpu_count() or 1)

    def sample_prior(self, draws: int = 1000, seed: int | None = None) -> pandas.DataFrame:
        """Draws of every parameter from its prior: a data frame with a row a draw, a column a parameter."""
        from partialpool.inference.prior import sample_prior

        return sample_prior(self, draws, seed)

    def sample_prior_predictive(self, draws: int = 200, seed: int | None = None) -> Array:
        """Responses that the priors alone predict for the model's rows, (draws, rows)."""
        from partialpool.inference.prior import sample_prior_predictive

        return sample_prior_predictive(self, draws, seed)

    def __repr__(self) -> str:
        design = self.design
        factors = ", ".join(f"{factor.name} {len(factor.labels):,}" for factor in design.factors) or "no groups"
        return f"Model: {design.terms.formula}\n{design.y.size:,} rows; {factors}; {self.family}"


def _offsets(design: Design) -> list[int]:
    """By term, where its columns start among its factor's."""
    used = [0] * len(design.factors)
    out = []
    for group in design.groups:
        out.append(used[group.factor])
        used[group.factor] += len(group.names)
    return out


def correlation_slot(design: Design, group: GroupDesign) -> str:
    """The name under which the prior of a term's correlations stands in the table."""
    factor = design.factors[group.factor].name
    twins = [g for g in design.groups if g.factor == group.factor and g.correlated and len(g.names) > 1]
    return f"cor({factor})" if len(twins) == 1 else f"cor({','.join(group.names)}|{factor})"


def prior_slots(design: Design) -> list[Slot]:
    """The default priors, scaled by the data the model is built on (rows counted by their `weights`)."""
    response = design.y if design.offset is None else design.y - design.offset
    centre, spread = _moments(response, design)
    spread = spread or 1.0
    slots = []
    for name in design.x_names:
        if name == INTERCEPT:
            default = Normal(_round_to(centre, spread), _round(2.5 * spread))
            slots.append(Slot(name, "intercept", (), default, "at the mean of the predictors; mean(y), 2.5 sd(y)"))
    if INTERCEPT in design.x_names:
        for name, column in zip(design.x_names, design.x_columns, strict=True):
            if name != INTERCEPT:
                width = _moments(design.V[:, column], design)[1] or 1.0
                default = Normal(0, _round(2.5 * spread / width))
                slots.append(Slot(name, "coefficient", (), default, "2.5 sd(y) / sd(x)"))
    else:
        slots += _slots_without_intercept(design, response, centre, spread)
    for group in design.groups:
        slots += _group_slots(design, group, spread)
    if design.se is None or design.se_sigma:
        slots.append(Slot("sigma", "sigma", (), HalfStudentT(3, _round(2.5 * spread)), "2.5 sd(y)"))
    return slots


def _slots_without_intercept(design: Design, response: Array, centre: float, spread: float) -> list[Slot]:
    """Priors of the coefficients of a formula without intercept.

    The columns of a factor that takes the intercept's place are its cells' means: each has the prior of an intercept.
    Other predictors carry the mean of the response too, so that root mean squares stand for sds.
    """
    cells = _cells(design)
    size = float(np.sqrt(np.mean(response * response))) or 1.0
    slots = []
    for name, column in zip(design.x_names, design.x_columns, strict=True):
        if name in cells:
            default = Normal(_round_to(centre, spread), _round(2.5 * spread))
            slots.append(Slot(name, "coefficient", (), default, "the mean of a cell; mean(y), 2.5 sd(y)"))
            continue
        values = design.V[:, column]
        width = float(np.sqrt(np.mean(values * values))) if not cells else _moments(values, design)[1]
        default = Normal(0, _round(2.5 * (spread if cells else size) / (width or 1.0)))
        note = "2.5 sd(y) / sd(x)" if cells else "no intercept: 2.5 rms(y) / rms(x)"
        slots.append(Slot(name, "coefficient", (), default, note))
    return slots


def _cells(design: Design) -> set[str]:
    """Names of the indicator columns of one factor that add up to 1 in every row."""
    by_factor: dict[str, list[tuple[str, int]]] = {}
    for name, column in zip(design.x_names, design.x_columns, strict=True):
        stem, bracket, _ = name.rpartition("[")
        if bracket and ":" not in name:
            by_factor.setdefault(stem, []).append((name, int(column)))
    for columns in by_factor.values():
        if np.all(design.V[:, [column for _, column in columns]].sum(axis=1) == 1):
            return {name for name, _ in columns}
    return set()


def _group_slots(design: Design, group: GroupDesign, spread: float) -> list[Slot]:
    factor = design.factors[group.factor].name
    slots = []
    for name, column in zip(group.names, group.columns, strict=True):
        width = 1.0 if name == INTERCEPT else _moments(design.V[:, column], design)[1] or 1.0
        note = "2.5 sd(y)" if name == INTERCEPT else "2.5 sd(y) / sd(x)"
        default = HalfStudentT(3, _round(2.5 * spread / width))
        slots.append(Slot(f"sd({name}|{factor})", "sd", (f"sd({factor})", "sd"), default, note))
    if group.correlated and len(group.names) > 1:
        keys = [f"cor({factor})", "cor"]
        if len(group.names) == 2:  # the one correlation, as `summary` names it
            keys.insert(0, f"cor({group.names[0]},{group.names[1]}|{factor})")
        note = "every correlation matrix equally likely"
        slots.append(Slot(correlation_slot(design, group), "cor", tuple(keys), LKJ(1), note))
    return slots


def _moments(values: Array, design: Design) -> tuple[float, float]:
    """Mean and sd over the rows, a row of weight 2 counting as two."""
    count = np.ones(values.size) if design.weights is None else design.weights
    total = float(count.sum())
    mean = float(count @ values) / total
    return mean, math.sqrt(float(count @ (values - mean) ** 2) / max(total - 1, 1.0))


def _round(value: float) -> float:
    """Three significant digits: a default prior that can be read, and typed again."""
    return float(f"{value:.3g}")


def _round_to(value: float, spread: float) -> float:
    """`value` to a hundredth of `spread` or so: short, yet as near as the prior's scale can tell."""
    return round(value, max(0, 2 - math.floor(math.log10(spread)))) if spread < 100 else float(round(value))


def _refuse_improper(design: Design, priors: PriorTable) -> None:
    """A flat prior of an sd that one or two groups cannot make proper."""
    for group in design.groups:
        factor = design.factors[group.factor]
        for name in group.names:
            slot = f"sd({name}|{factor.name})"
            if isinstance(priors[slot], Flat) and len(factor.labels) <= 2:
                raise PriorError(
                    f"A flat prior on {slot!r} has no proper posterior with {len(factor.labels)} groups; it takes at "
                    "least 3. Use a proper one, such as HalfNormal(1)."
                )


def _location_scale(name: str, prior: Distribution) -> tuple[float, float, float]:
    """(location, scale, proper) of a coefficient's prior, given its mixing scale."""
    if isinstance(prior, Normal | StudentT | Cauchy):
        return float(prior.mu), float(prior.sigma), 1.0
    if isinstance(prior, Flat):
        return 0.0, 1.0, 0.0
    raise PriorError(
        f"The prior {prior} of the coefficient {name!r} cannot be integrated out exactly. "
        "Use Normal, StudentT, Cauchy or Flat."
    )


def _degrees_of_freedom(prior: Distribution) -> float | None:
    if isinstance(prior, Cauchy):
        return 1.0
    return float(prior.nu) if isinstance(prior, StudentT) else None


def unknown_parameter(name: str, known: tuple[str, ...]) -> ModelError:
    """The error for a name that is no parameter of the model."""
    return ModelError(f"There is no parameter {name!r}. {did_you_mean(name, known)}")
