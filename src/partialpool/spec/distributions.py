"""Distributions that priors are made of: numpy and the standard library only, Stan's parameters in Stan's order."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from partialpool.errors import PriorError

FloatArray = NDArray[np.float64]
Size = int | tuple[int, ...] | None

_LOG_2 = math.log(2.0)
_LOG_PI = math.log(math.pi)
_LOG_SQRT_2PI = 0.5 * (_LOG_2 + _LOG_PI)


@dataclass(frozen=True)
class Distribution(ABC):
    """A distribution that can be the prior of a parameter.

    Subclasses are frozen and hold their parameters as floats. `log_density` is normalised (but for `Flat`, which is 0)
    and -inf outside of the support; `score` is its derivative, 0 outside of the support.
    """

    positive: ClassVar[tuple[str, ...]] = ()  # names of the parameters that must be > 0
    proper: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.integer | np.floating):
                raise PriorError(
                    f"{type(self).__name__}: {field.name} must be a number, and it is {value!r}; give a finite number."
                )
            number = float(value)
            if not math.isfinite(number):
                raise PriorError(f"{type(self).__name__}: {field.name} must be finite, and it is {number}.")
            if field.name in self.positive and number <= 0.0:
                raise PriorError(
                    f"{type(self).__name__}: {field.name} must be greater than 0, and it is {number:g}; "
                    "give a positive number."
                )
            object.__setattr__(self, field.name, number)

    @property
    def support(self) -> tuple[float, float]:
        """Ends of the interval where the density is positive."""
        return (-math.inf, math.inf)

    @property
    def parameters(self) -> dict[str, float]:
        """Parameters by name, in Stan's order."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def log_density(self, x: ArrayLike) -> FloatArray:
        """Log density at each element of `x`; same shape as `x`."""
        values, inside = self._split(x)
        with np.errstate(all="ignore"):
            density = np.where(inside, self._log_density(values), -np.inf)
        return np.where(np.isnan(values), np.nan, density)

    def score(self, x: ArrayLike) -> FloatArray:
        """Derivative of the log density in `x`; same shape as `x`."""
        values, inside = self._split(x)
        with np.errstate(all="ignore"):
            score = np.where(inside, self._score(values), 0.0)
        return np.where(np.isnan(values), np.nan, score)

    def _split(self, x: ArrayLike) -> tuple[FloatArray, NDArray[np.bool_]]:
        values = np.asarray(x, dtype=np.float64)
        low, high = self.support
        return values, np.asarray((values >= low) & (values <= high))

    @abstractmethod
    def _log_density(self, x: FloatArray) -> FloatArray:
        """Log density at points inside of the support (whatever elsewhere)."""

    @abstractmethod
    def _score(self, x: FloatArray) -> FloatArray:
        """Derivative at points inside of the support (whatever elsewhere)."""

    @abstractmethod
    def sample(self, rng: np.random.Generator, size: Size = None) -> FloatArray:
        """Independent draws of shape `size` (shape () where it is None)."""

    def __str__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{value:.12g}' for value in self.parameters.values())})"


@dataclass(frozen=True)
class Normal(Distribution):
    """Normal distribution with mean `mu` and standard deviation `sigma`.

    Examples
    --------
    >>> str(Normal(0, 5)), round(float(Normal(0, 1).log_density(0.0)), 4)
    ('Normal(0, 5)', -0.9189)
    """

    mu: float
    sigma: float
    positive = ("sigma",)

    def _log_density(self, x: FloatArray) -> FloatArray:
        z = (x - self.mu) / self.sigma
        return -0.5 * z * z - (_LOG_SQRT_2PI + math.log(self.sigma))

    def _score(self, x: FloatArray) -> FloatArray:
        return (self.mu - x) / self.sigma / self.sigma

    def sample(self, rng: np.random.Generator, size: Size = None) -> FloatArray:
        return np.asarray(self.mu + self.sigma * rng.standard_normal(size))


@dataclass(frozen=True)
class StudentT(Distribution):
    """Student's t with `nu` degrees of freedom, location `mu` and scale `sigma`.

    Examples
    --------
    >>> str(StudentT(3, 0, 2.5))
    'StudentT(3, 0, 2.5)'
    """

    nu: float
    mu: float
    sigma: float
    positive = ("nu", "sigma")

    def _log_density(self, x: FloatArray) -> FloatArray:
        z = (x - self.mu) / self.sigma
        return _student_log_norm(self.nu, self.sigma) - 0.5 * (self.nu + 1.0) * _log1p_square_over(z, self.nu)

    def _score(self, x: FloatArray) -> FloatArray:
        return _student_score(x - self.mu, self.nu, self.sigma)

    def sample(self, rng: np.random.Generator, size: Size = None) -> FloatArray:
        return np.asarray(self.mu + self.sigma * rng.standard_t(self.nu, size))


@dataclass(frozen=True)
class Cauchy(Distribution):
    """Cauchy distribution with location `mu` and scale `sigma`.

    Examples
    --------
    >>> str(Cauchy(0, 1))
    'Cauchy(0, 1)'
    """

    mu: float
    sigma: float
    positive = ("sigma",)

    def _log_density(self, x: FloatArray) -> FloatArray:
        z = (x - self.mu) / self.sigma
        return -(_LOG_PI + math.log(self.sigma)) - _log1p_square_over(z, 1.0)

    def _score(self, x: FloatArray) -> FloatArray:
        return _student_score(x - self.mu, 1.0, self.sigma)

    def sample(self, rng: np.random.Generator, size: Size = None) -> FloatArray:
        return np.asarray(self.mu + self.sigma * rng.standard_cauchy(size))


class _Positive(Distribution):
    """Distributions on [0, inf)."""

    @property
    def support(self) -> tuple[float, float]:
        """Ends of the interval where the density is positive."""
        return (0.0, math.inf)


@dataclass(frozen=True)
class HalfNormal(_Positive):
    """Absolute value of a Normal(0, `sigma`).

    Examples
    --------
    >>> str(HalfNormal(1)), HalfNormal(1).support
    ('HalfNormal(1)', (0.0, inf))
    """

    sigma: float
    positive = ("sigma",)

    def _log_density(self, x: FloatArray) -> FloatArray:
        z = x / self.sigma
        return -0.5 * z * z + (_LOG_2 - _LOG_SQRT_2PI - math.log(self.sigma))

    def _score(self, x: FloatArray) -> FloatArray:
        return -x / self.sigma / self.sigma

    def sample(self, rng: np.random.Generator, size: Size = None) -> FloatArray:
        return np.asarray(np.abs(self.sigma * rng.standard_normal(size)))


@dataclass(frozen=True)
class HalfStudentT(_Positive):
    """Absolute value of a StudentT(`nu`, 0, `sigma`).

    Examples
    --------
    >>> str(HalfStudentT(3, 2.5))
    'HalfStudentT(3, 2.5)'
    """

    nu: float
    sigma: float
    positive = ("nu", "sigma")

    def _log_density(self, x: FloatArray) -> FloatArray:
        constant = _LOG_2 + _student_log_norm(self.nu, self.sigma)
        return constant - 0.5 * (self.nu + 1.0) * _log1p_square_over(x / self.sigma, self.nu)

    def _score(self, x: FloatArray) -> FloatArray:
        return _student_score(x, self.nu, self.sigma)

    def sample(self, rng: np.random.Generator, size: Size = None) -> FloatArray:
        return np.asarray(np.abs(self.sigma * rng.standard_t(self.nu, size)))


@dataclass(frozen=True)
class HalfCauchy(_Positive):
    """Absolute value of a Cauchy(0, `sigma`).

    Examples
    --------
    >>> str(HalfCauchy(5))
    'HalfCauchy(5)'
    """

    sigma: float
    positive = ("sigma",)

    def _log_density(self, x: FloatArray) -> FloatArray:
        return (_LOG_2 - _LOG_PI - math.log(self.sigma)) - _log1p_square_over(x / self.sigma, 1.0)

    def _score(self, x: FloatArray) -> FloatArray:
        return _student_score(x, 1.0, self.sigma)

    def sample(self, rng: np.random.Generator, size: Size = None) -> FloatArray:
        return np.asarray(np.abs(self.sigma * rng.standard_cauchy(size)))


@dataclass(frozen=True)
class Exponential(_Positive):
    """Exponential distribution with mean 1/`rate`.

    Examples
    --------
    >>> str(Exponential(0.5)), float(Exponential(1).log_density(2.0))
    ('Exponential(0.5)', -2.0)
    """

    rate: float
    positive = ("rate",)

    def _log_density(self, x: FloatArray) -> FloatArray:
        return math.log(self.rate) - self.rate * x

    def _score(self, x: FloatArray) -> FloatArray:
        return np.full_like(x, -self.rate)

    def sample(self, rng: np.random.Generator, size: Size = None) -> FloatArray:
        return np.asarray(rng.standard_exponential(size) / self.rate)


def PC(upper: float, probability: float) -> Exponential:
    """The penalised-complexity prior of an sd: exponential, with P(sd > `upper`) = `probability`.

    Simpson, Rue, Riebler, Martins and Sorbye (2017), Statistical Science 32, 1-28.

    Examples
    --------
    >>> str(PC(1, 0.01))
    'Exponential(4.60517018599)'
    """
    if not 0 < float(probability) < 1:
        raise PriorError(f"PC: probability must be between 0 and 1, and it is {probability!r}.")
    if not 0 < float(upper) < math.inf:
        raise PriorError(f"PC: upper must be greater than 0, and it is {upper!r}.")
    return Exponential(-math.log(float(probability)) / float(upper))


@dataclass(frozen=True)
class Gamma(_Positive):
    """Gamma distribution with mean `shape`/`rate`.

    Examples
    --------
    >>> str(Gamma(2, 0.1))
    'Gamma(2, 0.1)'
    """

    shape: float
    rate: float
    positive = ("shape", "rate")

    def _log_density(self, x: FloatArray) -> FloatArray:
        constant = self.shape * math.log(self.rate) - math.lgamma(self.shape)
        return constant + _power_log(self.shape - 1.0, x) - self.rate * x

    def _score(self, x: FloatArray) -> FloatArray:
        return _power_score(self.shape - 1.0, x) - self.rate

    def sample(self, rng: np.random.Generator, size: Size = None) -> FloatArray:
        return np.asarray(rng.standard_gamma(self.shape, size) / self.rate)


@dataclass(frozen=True)
class InverseGamma(_Positive):
    """Distribution of 1/x where x is Gamma(`shape`, rate=`scale`).

    Examples
    --------
    >>> str(InverseGamma(3, 2))
    'InverseGamma(3, 2)'
    """

    shape: float
    scale: float
    positive = ("shape", "scale")

    def _log_density(self, x: FloatArray) -> FloatArray:
        constant = self.shape * math.log(self.scale) - math.lgamma(self.shape)
        density = constant - (self.shape + 1.0) * np.log(x) - self.scale / x
        return np.where((x == 0.0) | np.isnan(density), -np.inf, density)  # at 0 the exponential wins

    def _score(self, x: FloatArray) -> FloatArray:
        return (self.scale / x - (self.shape + 1.0)) / x

    def sample(self, rng: np.random.Generator, size: Size = None) -> FloatArray:
        return np.asarray(self.scale / rng.standard_gamma(self.shape, size))


@dataclass(frozen=True)
class Uniform(Distribution):
    """Uniform distribution on [`low`, `high`].

    Examples
    --------
    >>> str(Uniform(0, 10)), Uniform(0, 10).support
    ('Uniform(0, 10)', (0.0, 10.0))
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low >= self.high:
            raise PriorError(f"Uniform: low must be less than high, and they are {self.low:g} and {self.high:g}.")

    @property
    def support(self) -> tuple[float, float]:
        return (self.low, self.high)

    def _log_density(self, x: FloatArray) -> FloatArray:
        return np.full_like(x, -math.log(self.high - self.low))

    def _score(self, x: FloatArray) -> FloatArray:
        return np.zeros_like(x)

    def sample(self, rng: np.random.Generator, size: Size = None) -> FloatArray:
        return np.asarray(rng.uniform(self.low, self.high, size))


@dataclass(frozen=True)
class Beta(Distribution):
    """Beta distribution on [0, 1] with mean `a`/(`a` + `b`).

    Examples
    --------
    >>> str(Beta(2, 5)), Beta(2, 5).support
    ('Beta(2, 5)', (0.0, 1.0))
    """

    a: float
    b: float
    positive = ("a", "b")

    @property
    def support(self) -> tuple[float, float]:
        return (0.0, 1.0)

    def _log_density(self, x: FloatArray) -> FloatArray:
        return _power_log(self.a - 1.0, x) + _power_log(self.b - 1.0, 1.0 - x) - _log_beta(self.a, self.b)

    def _score(self, x: FloatArray) -> FloatArray:
        return _power_score(self.a - 1.0, x) - _power_score(self.b - 1.0, 1.0 - x)

    def sample(self, rng: np.random.Generator, size: Size = None) -> FloatArray:
        return np.asarray(rng.beta(self.a, self.b, size))


@dataclass(frozen=True)
class Flat(Distribution):
    """The improper prior whose density is constant (on the whole support of the parameter); it cannot be drawn from.

    Examples
    --------
    >>> str(Flat()), Flat().proper
    ('Flat()', False)
    """

    proper: ClassVar[bool] = False

    def _log_density(self, x: FloatArray) -> FloatArray:
        return np.zeros_like(x)

    def _score(self, x: FloatArray) -> FloatArray:
        return np.zeros_like(x)

    def sample(self, rng: np.random.Generator, size: Size = None) -> FloatArray:
        """Always raises `PriorError`: an improper prior has no draws."""
        raise PriorError("Flat() is improper and cannot be drawn from; give the parameter a proper prior.")


@dataclass(frozen=True)
class LKJ(Distribution):
    """Distribution of correlation matrices with density proportional to det(R)^(`eta` - 1).

    Lewandowski, Kurowicka and Joe (2009), Journal of Multivariate Analysis 100, 1989-2001. `eta` = 1 is uniform over
    correlation matrices; a larger `eta` draws correlations towards 0.

    Examples
    --------
    >>> LKJ(2).sample(np.random.default_rng(1), 10, dim=3).shape
    (10, 3, 3)
    """

    eta: float
    positive = ("eta",)

    @property
    def support(self) -> tuple[float, float]:
        """Interval of each correlation."""
        return (-1.0, 1.0)

    def log_normalizer(self, dim: int) -> float:
        """Log of the integral of det(R)^(eta - 1) over correlation matrices of `dim` rows (their equation 16)."""
        total = 0.0
        for level in range(1, dim):
            alpha = self.eta + 0.5 * (dim - 1 - level)
            total += (dim - level) * ((2.0 * alpha - 1.0) * _LOG_2 + _log_beta(alpha, alpha))
        return total

    def log_density(self, x: ArrayLike) -> FloatArray:
        """Log density of correlation matrices, shape (..., dim, dim) -> (...)."""
        matrices = _square(x)
        sign, log_determinant = np.linalg.slogdet(matrices)
        # The determinant alone also accepts an even number of negative eigenvalues.
        lowest = np.linalg.eigvalsh(matrices)[..., 0] if matrices.shape[-1] > 2 else sign
        inside = (sign > 0) & (lowest > 0)
        exponent = self.eta - 1.0
        power = exponent * log_determinant if exponent else np.zeros_like(log_determinant)
        return np.where(inside, power - self.log_normalizer(matrices.shape[-1]), -np.inf)

    def score(self, x: ArrayLike) -> FloatArray:
        """Derivative in each correlation (which moves with its mirror image); zero on the diagonal."""
        matrices = _square(x)
        off_diagonal = 1.0 - np.eye(matrices.shape[-1])
        return np.asarray(2.0 * (self.eta - 1.0) * np.linalg.inv(matrices) * off_diagonal)

    def _log_density(self, x: FloatArray) -> FloatArray:
        return self.log_density(x)

    def _score(self, x: FloatArray) -> FloatArray:
        return self.score(x)

    def sample(self, rng: np.random.Generator, size: Size = None, dim: int = 2) -> FloatArray:
        """Correlation matrices of shape `size` + (dim, dim), from independent canonical partial correlations."""
        shape = () if size is None else (size,) if isinstance(size, int | np.integer) else tuple(size)
        factor = np.zeros((*shape, dim, dim))
        factor[..., 0, 0] = 1.0
        remaining = np.ones((*shape, dim))  # 1 - sum of squares of each row so far
        for column in range(dim - 1):
            alpha = self.eta + 0.5 * (dim - 2 - column)
            partial = 2.0 * rng.beta(alpha, alpha, (*shape, dim - 1 - column)) - 1.0
            below = remaining[..., column + 1 :]
            factor[..., column + 1 :, column] = partial * np.sqrt(below)
            remaining[..., column + 1 :] = below * (1.0 - partial * partial)
            factor[..., column + 1, column + 1] = np.sqrt(remaining[..., column + 1])
        matrices = factor @ np.swapaxes(factor, -1, -2)
        matrices[..., np.arange(dim), np.arange(dim)] = 1.0
        return np.asarray(matrices)


DISTRIBUTIONS: dict[str, type[Distribution]] = {
    kind.__name__: kind
    for kind in (
        Normal, StudentT, Cauchy, HalfNormal, HalfStudentT, HalfCauchy,
        Exponential, Gamma, InverseGamma, Uniform, Beta, LKJ, Flat,
    )
}  # fmt: skip


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def _student_log_norm(nu: float, sigma: float) -> float:
    if nu > 1e6:  # the difference of two large lgamma loses digits: its asymptotic series does not
        gammas = 0.5 * math.log(0.5 * nu) - 0.25 / nu
    else:
        gammas = math.lgamma(0.5 * (nu + 1.0)) - math.lgamma(0.5 * nu)
    return gammas - 0.5 * (math.log(nu) + _LOG_PI) - math.log(sigma)


def _log1p_square_over(z: FloatArray, nu: float) -> FloatArray:
    """log(1 + z^2/nu), finite wherever z is."""
    scaled = np.abs(z) / math.sqrt(nu)
    large = scaled > 1e100
    return np.where(large, 2.0 * np.log(np.where(large, scaled, 1.0)), np.log1p(np.where(large, 0.0, scaled) ** 2))


def _student_score(centred: FloatArray, nu: float, sigma: float) -> FloatArray:
    z = centred / sigma
    with np.errstate(over="ignore"):
        return np.asarray(-(nu + 1.0) / sigma * (z / (nu + z * z)))


def _power_log(power: float, x: FloatArray) -> FloatArray:
    """The product of power and log(x), which is 0 at x = 0 where the power is 0."""
    return power * np.log(x) if power else np.zeros_like(x)


def _power_score(power: float, x: FloatArray) -> FloatArray:
    return power / x if power else np.zeros_like(x)


def _square(x: ArrayLike) -> FloatArray:
    matrices = np.asarray(x, dtype=np.float64)
    if matrices.ndim < 2 or matrices.shape[-1] != matrices.shape[-2]:
        raise PriorError(f"LKJ is a distribution of square correlation matrices, and was given shape {matrices.shape}.")
    return matrices
