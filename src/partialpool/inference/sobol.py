"""Quasi-random points: scrambled Sobol sequences, and the quantile functions that carry them to a proposal."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from partialpool.errors import InferenceError

FloatArray = NDArray[np.float64]
WordArray = NDArray[np.uint32]

_BITS = 32
MAX_DIMENSIONS = 32

# Primitive polynomials (as binary numbers) and initial direction numbers of dimensions 2 to 32, from
# new-joe-kuo-6.21201: Joe and Kuo (2008), Constructing Sobol sequences with better two-dimensional projections, SIAM
# Journal on Scientific Computing 30, 2635-2654 (https://web.maths.unsw.edu.au/~fkuo/sobol/). Dimension 1 is van der
# Corput's sequence.
_JOE_KUO: tuple[tuple[int, tuple[int, ...]], ...] = (
    (3, (1,)),
    (7, (1, 3)),
    (11, (1, 3, 1)),
    (13, (1, 1, 1)),
    (19, (1, 1, 3, 3)),
    (25, (1, 3, 5, 13)),
    (37, (1, 1, 5, 5, 17)),
    (41, (1, 1, 5, 5, 5)),
    (47, (1, 1, 7, 11, 19)),
    (55, (1, 1, 5, 1, 1)),
    (59, (1, 1, 1, 3, 11)),
    (61, (1, 3, 5, 5, 31)),
    (67, (1, 3, 3, 9, 7, 49)),
    (91, (1, 1, 1, 15, 21, 21)),
    (97, (1, 3, 1, 13, 27, 49)),
    (103, (1, 1, 1, 15, 7, 5)),
    (109, (1, 3, 1, 15, 13, 25)),
    (115, (1, 1, 5, 5, 19, 61)),
    (131, (1, 3, 7, 11, 23, 15, 103)),
    (137, (1, 3, 7, 13, 13, 15, 69)),
    (143, (1, 1, 3, 13, 7, 35, 63)),
    (145, (1, 3, 5, 9, 1, 25, 53)),
    (157, (1, 3, 1, 13, 9, 35, 107)),
    (167, (1, 3, 1, 5, 27, 61, 31)),
    (171, (1, 1, 5, 11, 19, 41, 61)),
    (185, (1, 3, 5, 3, 3, 13, 69)),
    (191, (1, 1, 7, 13, 1, 19, 1)),
    (193, (1, 3, 7, 5, 13, 19, 59)),
    (203, (1, 1, 3, 9, 25, 29, 41)),
    (211, (1, 3, 5, 13, 23, 1, 55)),
    (213, (1, 3, 7, 3, 13, 59, 17)),
)


def _direction_numbers(dimensions: int) -> WordArray:
    """Direction numbers, shape (32, dimensions): bit 31 of a word is the first binary digit after the point."""
    directions = np.zeros((_BITS, dimensions), dtype=np.uint32)
    directions[:, 0] = [1 << (_BITS - 1 - k) for k in range(_BITS)]
    for column in range(1, dimensions):
        polynomial, initial = _JOE_KUO[column - 1]
        degree = len(initial)
        words = [m << (_BITS - 1 - k) for k, m in enumerate(initial)]
        for k in range(degree, _BITS):
            word = words[k - degree] ^ (words[k - degree] >> degree)
            for lag in range(1, degree):
                if polynomial >> (degree - lag) & 1:
                    word ^= words[k - lag]
            words.append(word)
        directions[:, column] = words
    return directions


def _matrix_scramble(directions: WordArray, rng: np.random.Generator) -> WordArray:
    """Random linear (left-matrix) scramble: each digit gains a random sum, modulo 2, of the digits before it.

    Matousek (1998), On the L2-discrepancy for anchored boxes, Journal of Complexity 14, 527-556.
    """
    dimensions = directions.shape[1]
    shifts = np.arange(_BITS - 1, -1, -1, dtype=np.uint32)
    digits = (directions.T[:, None, :] >> shifts[:, None]) & np.uint32(1)  # (dimension, digit, direction)
    lower = np.tril(rng.integers(0, 2, (dimensions, _BITS, _BITS)), -1) + np.eye(_BITS, dtype=np.int64)
    scrambled = (lower.astype(np.float64) @ digits.astype(np.float64)).astype(np.int64) & 1
    words = (scrambled << shifts.astype(np.int64)[:, None]).sum(axis=1)
    return np.ascontiguousarray(words.T.astype(np.uint32))


class Sobol:
    """A Sobol sequence that can be continued; scrambled where a generator is given.

    Parameters
    ----------
    dimensions : int
        At most 32.
    rng : numpy.random.Generator or None
        The source of the scramble (a left-matrix scramble and a digital shift); with None the sequence is the plain
        one, whose first point is 0.
    start : int
        Index of the first point to be returned.

    Raises
    ------
    InferenceError
        For a dimension outside of 1 to 32, or past the 2^32nd point.

    Notes
    -----
    Scrambled points are the centres of their cells of width 2^-32, so they lie strictly between 0 and 1. Numbers of
    points that are powers of two (from a multiple of that power) are balanced in every dimension.

    Examples
    --------
    >>> sequence = Sobol(2, np.random.default_rng(1))
    >>> first, more = sequence.next(256), sequence.next(256)
    >>> bool(np.all(np.concatenate([first, more]) == sobol(512, 2, np.random.default_rng(1))))
    True
    """

    def __init__(self, dimensions: int, rng: np.random.Generator | None, start: int = 0) -> None:
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise InferenceError(
                f"Sobol points are available in 1 to {MAX_DIMENSIONS} dimensions, not in {dimensions}; "
                'use method="nuts" for a model with so many hyperparameters.'
            )
        directions = _direction_numbers(dimensions)
        shift = np.zeros(dimensions, dtype=np.uint32)
        if rng is not None:
            directions = _matrix_scramble(directions, rng)
            shift = rng.integers(0, 1 << _BITS, dimensions, dtype=np.uint32)
        self._directions = directions
        self._shift = shift
        self._offset = 0.0 if rng is None else 0.5
        self.position = start

    def next(self, n: int) -> FloatArray:
        """The next `n` points, shape (n, dimensions)."""
        if n < 0 or self.position + n > 1 << _BITS:
            raise InferenceError(f"A Sobol sequence has 2^{_BITS} points; {n} from {self.position} on were asked for.")
        words = self._words(self.position, n)
        self.position += n
        points = words.astype(np.float64)
        points += self._offset
        points *= 2.0**-_BITS
        return points

    def _words(self, start: int, n: int) -> WordArray:
        """Points `start` to `start + n` as 32-bit integers.

        Point i is the sum modulo 2 of the direction numbers at the digits of the Gray code of i, which is linear in the
        digits of i: within an aligned block of 2^m points only the low digits vary, so one table serves every block.
        """
        dimensions = len(self._shift)
        if n == 0:
            return np.zeros((0, dimensions), dtype=np.uint32)
        low_digits = max(n - 1, 1).bit_length()
        size = 1 << low_digits
        table = self._gray_table(low_digits, min(size, n if start % size == 0 else size))
        words = np.empty((n, dimensions), dtype=np.uint32)
        done = 0
        while done < n:
            block, within = divmod(start + done, size)
            count = min(size - within, n - done)
            np.bitwise_xor(table[within : within + count], self._point(block * size), out=words[done : done + count])
            done += count
        return words

    def _gray_table(self, digits: int, rows: int) -> WordArray:
        """The first `rows` points of the unshifted sequence, by reflection.

        The Gray codes of 2^k + j and 2^k - 1 - j differ in digit k alone.
        """
        table = np.zeros((rows, len(self._shift)), dtype=np.uint32)
        for digit in range(digits):
            half = 1 << digit
            count = min(half, rows - half)
            if count <= 0:
                break
            mirror = table[half - count : half][::-1]
            np.bitwise_xor(mirror, self._directions[digit], out=table[half : half + count])
        return table

    def _point(self, index: int) -> WordArray:
        """Point `index` of the sequence, shift included."""
        gray = index ^ (index >> 1)
        chosen = [digit for digit in range(_BITS) if gray >> digit & 1]
        return np.asarray(np.bitwise_xor.reduce(self._directions[chosen], axis=0, initial=0) ^ self._shift)


def sobol(n: int, d: int, rng: np.random.Generator | None, start: int = 0) -> FloatArray:
    """Points `start` to `start + n` of a scrambled Sobol sequence in (0, 1)^d, shape (n, d).

    Examples
    --------
    >>> sobol(4, 1, None).ravel().tolist()
    [0.0, 0.5, 0.75, 0.25]
    """
    return Sobol(d, rng, start).next(n)


# Wichura (1988), Algorithm AS 241: the percentage points of the normal distribution, Applied Statistics 37, 477-484.
# Numerators and denominators of three rational functions, from the constant up: the centre, the tails, the far tails.
_CENTRE = (
    (3.3871328727963666080e0, 1.3314166789178437745e2, 1.9715909503065514427e3, 1.3731693765509461125e4,
     4.5921953931549871457e4, 6.7265770927008700853e4, 3.3430575583588128105e4, 2.5090809287301226727e3),
    (1.0, 4.2313330701600911252e1, 6.8718700749205790830e2, 5.3941960214247511077e3,
     2.1213794301586595867e4, 3.9307895800092710610e4, 2.8729085735721942674e4, 5.2264952788528545610e3),
)  # fmt: skip
_TAIL = (
    (1.42343711074968357734e0, 4.63033784615654529590e0, 5.76949722146069140550e0, 3.64784832476320460504e0,
     1.27045825245236838258e0, 2.41780725177450611770e-1, 2.27238449892691845833e-2, 7.74545014278341407640e-4),
    (1.0, 2.05319162663775882187e0, 1.67638483018380384940e0, 6.89767334985100004550e-1,
     1.48103976427480074590e-1, 1.51986665636164571966e-2, 5.47593808499534494600e-4, 1.05075007164441684324e-9),
)  # fmt: skip
_FAR_TAIL = (
    (6.65790464350110377720e0, 5.46378491116411436990e0, 1.78482653991729133580e0, 2.96560571828504891230e-1,
     2.65321895265761230930e-2, 1.24266094738807843860e-3, 2.71155556874348757815e-5, 2.01033439929228813265e-7),
    (1.0, 5.99832206555887937690e-1, 1.36929880922735805310e-1, 1.48753612908506148525e-2,
     7.86869131145613259100e-4, 1.84631831751005468180e-5, 1.42151175831644588870e-7, 2.04426310338993978564e-15),
)  # fmt: skip


def _rational(coefficients: tuple[tuple[float, ...], tuple[float, ...]], x: FloatArray) -> FloatArray:
    """Ratio of two polynomials, by Horner's rule."""
    values = []
    for polynomial in coefficients:
        value = np.full_like(x, polynomial[-1])
        for coefficient in polynomial[-2::-1]:
            value *= x
            value += coefficient
        values.append(value)
    values[0] /= values[1]
    return values[0]


def normal_quantile(p: ArrayLike) -> FloatArray:
    """Quantiles of the standard normal distribution (Wichura's AS 241, about 16 digits); same shape as `p`.

    -inf at 0, inf at 1, nan outside of [0, 1].

    Examples
    --------
    >>> round(float(normal_quantile(0.975)), 6)
    1.959964
    """
    probability = np.asarray(p, dtype=np.float64)
    flat = probability.ravel()
    centred = flat - 0.5
    quantile = centred * _rational(_CENTRE, np.clip(0.180625 - centred * centred, 0.0, None))
    outer = np.flatnonzero(~(np.abs(centred) <= 0.425))  # nan goes this way too
    if outer.size:
        with np.errstate(divide="ignore", invalid="ignore"):
            tail = np.minimum(flat[outer], 1.0 - flat[outer])
            radius = np.sqrt(-np.log(tail))
            size = np.where(radius <= 5.0, _rational(_TAIL, radius - 1.6), _rational(_FAR_TAIL, radius - 5.0))
        size = np.where(tail == 0.0, np.inf, size)
        quantile[outer] = np.copysign(size, centred[outer])
    return quantile.reshape(probability.shape)


def student4_quantile(p: ArrayLike) -> FloatArray:
    """Quantiles of Student's t with 4 degrees of freedom, in closed form; same shape as `p`.

    With cos(phi) = 2 sqrt(p (1 - p)), the quantile is +-2 sqrt(cos(phi/3)/cos(phi) - 1) (Shaw 2006, Journal of
    Computational Finance 9(4), 37-73), whose difference is written as 2 sin(2 phi/3) sin(phi/3)/cos(phi) to lose no
    digits near the median.

    Examples
    --------
    >>> round(float(student4_quantile(0.975)), 6)
    2.776445
    """
    probability = np.asarray(p, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        cosine = 2.0 * np.sqrt(probability) * np.sqrt(1.0 - probability)
        offset = 2.0 * (probability - 0.5)
        third = np.arctan2(np.abs(offset), cosine) / 3.0
        size = 2.0 * np.sqrt(2.0 * np.sin(2.0 * third) * np.sin(third) / cosine)
    return np.copysign(size, offset)


def student4_log_density(x: ArrayLike) -> FloatArray:
    """Log density of Student's t with 4 degrees of freedom, 3/8 (1 + x^2/4)^(-5/2); same shape as `x`.

    Examples
    --------
    >>> round(float(student4_log_density(0.0)), 6) == round(math.log(3 / 8), 6)
    True
    """
    values = np.abs(np.asarray(x, dtype=np.float64))
    half = 0.5 * np.minimum(values, 1e100)
    beyond = np.log(np.maximum(values, 1e100)) - math.log(1e100)  # 0 but where the square would overflow
    return np.asarray(math.log(3.0 / 8.0) - 2.5 * np.log1p(half * half) - 5.0 * beyond)
