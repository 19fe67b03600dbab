"""A model: design, family and priors, and the layout of its hyperparameters. Nothing is fitted here."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from partialpool.design.crossprod import RowBlocks, build_row_blocks
from partialpool.design.defaults import correlation_slot, moments, prior_slots
from partialpool.design.design import Design, build_design
from partialpool.design.latent import LatentLayout, latent_layout
from partialpool.design.predictor import factor_columns
from partialpool.design.response import check_response
from partialpool.design.subset import take_rows
from partialpool.errors import DataError, ModelError, PriorError, did_you_mean
from partialpool.spec.covariance import TermCovariance
from partialpool.spec.distributions import LKJ, Cauchy, Distribution, Flat, Normal, StudentT
from partialpool.spec.families import Gaussian, resolve_family
from partialpool.spec.formula import Terms
from partialpool.spec.hyperparameters import Hyperparameters, Mixture, TermLayout
from partialpool.spec.predictors import read_terms
from partialpool.spec.priors import PriorTable, resolve_priors

if TYPE_CHECKING:
    import pandas

    from partialpool.inference.optimum import MaximumLikelihood
    from partialpool.posterior.posterior import Posterior
    from partialpool.spec.families import Family

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Coefficients:
    """How the public coefficients relate to those that the engines integrate out.

    The engines work with ``gamma = beta`` but for the intercept, ``gamma_0 = beta_0 + sum_j centre_j beta_j``: the
    intercept at the centre of the predictors; gamma has independent priors with location `mean` and scale `scale`.
    Each linear predictor has its own intercept, centred by its own columns.

    Attributes
    ----------
    names : public names. intercept : position of the mean's intercept, or None.
    centre : (p,) what is taken from each column.
    mean, scale : (p,) prior location and scale of gamma (0 and 1 where flat). proper : (p,) 0 where flat.
    predictor : (p,) the linear predictor of each coefficient; empty where there is one.
    intercepts : by linear predictor, the position of its intercept; empty where there is one predictor.
    """

    names: tuple[str, ...]
    intercept: int | None
    centre: tuple[float, ...]
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    proper: tuple[float, ...]
    predictor: tuple[int, ...] = ()
    intercepts: tuple[int | None, ...] = ()

    def to_public(self, gamma: Array) -> Array:
        """beta (..., p) from gamma (..., p)."""
        return self._shifted(gamma, -1.0)

    def from_public(self, beta: Array) -> Array:
        """gamma (..., p) from beta (..., p)."""
        return self._shifted(beta, 1.0)

    def _shifted(self, values: Array, sign: float) -> Array:
        """Values with each intercept moved by its predictor's columns at their centres."""
        centre, own = np.asarray(self.centre), np.asarray(self.predictor)
        intercepts = enumerate(self.intercepts or (self.intercept,))
        moved = [(at, centre if not own.size else np.where(own == k, centre, 0.0)) for k, at in intercepts]
        if all(at is None for at, _ in moved):
            return values
        out = np.array(values, dtype=float)
        for at, weights in moved:
            if at is not None:
                out[..., at] += sign * (values @ weights)
        return out

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
    family : Family
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
    family: Family = field(default_factory=Gaussian)

    @classmethod
    def from_formula(
        cls,
        formula: str | Terms,
        data: Any,
        *,
        family: str | Family = "gaussian",
        priors: Mapping[str, Distribution | str] | None = None,
    ) -> Model:
        """Read a formula, encode the data it names, and set the priors.

        Parameters
        ----------
        formula : str
            An lme4 or brms formula, ``"y ~ x + (1 + x | g)"``; or what :func:`partialpool.formula` made of several.
        data : data frame, pyarrow table, dict of arrays, or path of a CSV or Parquet file
        family : str or family
            The distribution of the response, by name (``"gaussian"``, ``"bernoulli"``, ``"poisson"``, ...), or with
            options: ``pp.families.Gamma(link="inverse")``.
        priors : mapping, optional
            Priors by name, ``{"sd(g)": pp.HalfNormal(1)}``; the others keep their defaults (see ``model.priors``).

        Raises
        ------
        FormulaError, DataError, PriorError
            With what is wrong, where, and how to mend it.
        """
        resolved = resolve_family(family)
        design = build_design(read_terms(formula), data, family=resolved)
        table = resolve_priors(priors, prior_slots(design, resolved))
        _refuse_improper(design, table)
        return cls(design, table, resolved)

    @property
    def exact(self) -> bool:
        """Whether all group effects and coefficients are integrated out exactly: a Gaussian response with one sigma."""
        return self.family.name == "gaussian" and not self.design.terms.predictors

    # -- layout ---------------------------------------------------------------------------------------------------

    @cached_property
    def coefficients(self) -> Coefficients:
        """The public coefficients and their priors, as the engines use them."""
        design = self.design
        names, intercepts = design.x_names, design.intercepts
        rows = [_location_scale(name, self.priors[name]) for name in names]
        mean = [row[0] for row in rows]
        for at in intercepts:
            if at is not None and not rows[at][2]:
                mean[at] = self._origin(names[at])  # any origin does under a flat prior
        one = len(intercepts) == 1
        return Coefficients(
            names, intercepts[0], tuple(self._centre), tuple(mean), tuple(row[1] for row in rows),
            tuple(row[2] for row in rows), () if one else tuple(design.x_predictor.tolist()), () if one else intercepts,
        )  # fmt: skip

    def _origin(self, name: str) -> float:
        """Where an intercept lies, more or less."""
        if self.exact:
            return float(np.mean(self._working_response()))
        return next(float(s.default.mu) for s in self.priors.slots if s.name == name and isinstance(s.default, Normal))

    @cached_property
    def column_means(self) -> Array:
        """Mean of each predictor, 0 for the intercepts."""
        design, intercepts = self.design, self.design.intercepts
        return np.array(
            [0.0 if at in intercepts else moments(design.V[:, column], design)[0]
             for at, column in enumerate(design.x_columns)]
        )  # fmt: skip

    @cached_property
    def hyperparameters(self) -> Hyperparameters:
        """The layout and the prior of theta."""
        terms, sds, correlations = [], [], []
        at = 0
        layout = self.row_blocks.structure if self.exact else self.latent
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
        sigma = self.priors["sigma"] if self.has_sigma else None
        return Hyperparameters(
            tuple(terms), layout.widths, layout.lam_at, tuple(sds), tuple(correlations), sigma, self._mixtures(),
            self._auxiliary(),
        )  # fmt: skip

    def _mixtures(self) -> tuple[Mixture, ...]:
        """Coefficients whose Student-t prior is written as a mixture of normals, which exact engines need."""
        degrees = [_degrees_of_freedom(self.priors[name]) for name in self.design.x_names if self.exact]
        return tuple(Mixture(column, nu) for column, nu in enumerate(degrees) if nu is not None)

    def _auxiliary(self) -> tuple[tuple[str, Distribution], ...]:
        """The family's own parameters that have no formula."""
        if self.exact:
            return ()
        modelled = self.design.terms.predictors
        return tuple((name, self.priors[name]) for name in self.family.parameters if name not in modelled)

    @cached_property
    def latent(self) -> LatentLayout:
        """Where the group effects stand in the vector of all of them, for engines that keep the rows."""
        return latent_layout(self.design)

    @property
    def has_sigma(self) -> bool:
        """Whether the one residual sd of a Gaussian response is estimated (it is not where `se()` gives it)."""
        return self.exact and (self.design.se is None or self.design.se_sigma)

    @cached_property
    def row_blocks(self) -> RowBlocks:
        """Where the rows' cross-products go, columns centred at the means of the predictors (with an intercept)."""
        return self._row_blocks(np.asarray(self._centre))

    @property
    def _centre(self) -> Array:
        design = self.design
        kept = np.zeros(len(design.x_names), dtype=bool)
        for predictor, at in enumerate(design.intercepts):
            if at is not None and self.priors.matched_key(design.x_names[at]) != design.x_names[at]:
                kept |= design.x_predictor == predictor
        return np.where(kept, self.column_means, 0.0) if kept.any() else np.zeros(len(kept))

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
        """The names of `summary()`: coefficients, then sds, correlations, sigma or the family's own parameters."""
        return (*self.design.x_names, *self.hyperparameters.names)

    def with_response(self, y: ArrayLike) -> Model:
        """The same model, priors included, of another response on the same rows (for simulation and refits)."""
        response = np.ascontiguousarray(y, dtype=float)
        if response.shape != self.design.y.shape:
            raise DataError(f"The new response has shape {response.shape}; the model has {self.design.y.size} rows.")
        if not np.isfinite(response).all():
            first = int(np.flatnonzero(~np.isfinite(response))[0])
            raise DataError(f"The new response is not finite in row {first}.")
        check_response(response, self.design.trials, self.design.data.index, self.family)
        other = Model(replace(self.design, y=response), self.priors, self.family)
        other.__dict__["column_means"] = self.column_means
        if self.exact:
            other.__dict__["row_blocks"] = self.row_blocks
        return other

    def take_rows(self, rows: NDArray[np.int64]) -> Model:
        """The same model of some of its rows, for refits: the same priors, predictors centred at the same values.

        Parameters
        ----------
        rows : positions (k,) of the rows wanted, each once.
        """
        part = Model(take_rows(self.design, rows), self.priors, self.family)
        part.__dict__["column_means"] = self.column_means
        return part

    # -- doors to later rooms ---------------------------------------------------------------------------------------

    def fit(self, **options: Any) -> Posterior:
        """Fit the model; the options are those of :func:`partialpool.fit`."""
        from partialpool.posterior.fitting import fit_model

        return fit_model(self, **options)

    def log_likelihood(self, params: Mapping[str, float], nodes: int | None = None) -> float:
        """log p(y | coefficients, hyperparameters), the group effects integrated out.

        Parameters
        ----------
        params : mapping
            A value for every name of `parameter_names`: coefficients, sds, correlations, sigma.
        nodes : int, optional
            Quadrature nodes a group effect for responses that are not Gaussian, 1 for Laplace; chosen by a measured
            gap where it is not given.

        Raises
        ------
        ModelError
            Where a value is missing or impossible.
        """
        if not self.exact:
            from partialpool.inference import likelihood

            value: float = likelihood.log_likelihood(self, params, nodes=nodes)
            return value
        from partialpool.inference.gaussian import log_likelihood

        self._refuse_nodes(nodes)
        return log_likelihood(self, params)

    def _refuse_nodes(self, nodes: int | None) -> None:
        if nodes is not None:
            raise ModelError("nodes= is for responses that need quadrature; with a Gaussian response leave it out.")

    def maximum_likelihood(
        self, reml: bool = False, nodes: int | None = None, threads: int | None = None
    ) -> MaximumLikelihood:
        """The point estimate of lme4: maximum likelihood, or restricted maximum likelihood with ``reml=True``.

        Parameters
        ----------
        reml : bool
            Integrate the coefficients out under a flat prior (REML); for a Gaussian response.
        nodes : int, optional
            Quadrature nodes for other families (glmer's nAGQ; 1 is Laplace); a Gaussian response is exact and takes
            none.
        threads : int, optional
            Cores to use; all by default.
        """
        cores = threads or os.cpu_count() or 1
        if not self.exact:
            if reml:
                raise ModelError(
                    f"reml=True is for a Gaussian response with one sigma; this one is {self.family}"
                    f"{' with a formula of sigma' * (self.family.name == 'gaussian')}; leave it out."
                )
            from partialpool.inference import likelihood

            found: MaximumLikelihood = likelihood.maximum_likelihood(self, nodes=nodes, threads=cores)
            return found
        from partialpool.inference.optimum import maximum_likelihood

        self._refuse_nodes(nodes)
        return maximum_likelihood(self, reml=reml, threads=cores)

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
        counted = f"; {design.success!r} counts as success" if design.success is not None else ""
        return f"Model: {design.terms.formula}\n{design.y.size:,} rows; {factors}; {self.family}{counted}"


def _offsets(design: Design) -> list[int]:
    """By term, where its columns start among its factor's."""
    used = [0] * len(design.factors)
    out = []
    for group in design.groups:
        out.append(used[group.factor])
        used[group.factor] += len(group.names)
    return out


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
