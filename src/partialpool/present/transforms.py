"""Probability-integral transforms as numbers: the bars of their histogram, Neyman's smooth test, a verdict in words."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def pit_heights(below: Array, at: Array, edges: Array) -> Array:
    """Bars of the nonrandomised histogram (Czado, Gneiting & Held 2009), (bars,), whose mean is 1.

    Each unit's mass is spread evenly between its two probabilities.

    Examples
    --------
    >>> pit_heights(np.array([0.2]), np.array([0.7]), np.array([0.0, 0.5, 1.0]))
    array([1.2, 0.8])
    """
    width = at - below
    spread = width > 1e-12
    ends = np.clip((edges[:, None] - below[spread]) / width[spread], 0, 1).sum(axis=1)
    counts = np.diff(ends) + np.histogram(at[~spread], edges)[0]
    return np.asarray(counts / (len(at) * np.diff(edges)))


def smooth_components(below: Array, at: Array) -> Array:
    """Standardised means of the Legendre polynomials of degrees 1 to 4 of the transforms, (4,).

    Standard normal and independent where the transforms are uniform (Neyman 1937). A count's polynomial is averaged
    between its two probabilities, which makes the components smaller than that, never larger.
    """
    from numpy.polynomial import legendre

    components = []
    for degree in range(1, 5):
        coefficients = np.zeros(degree + 1)
        coefficients[degree] = np.sqrt(2 * degree + 1)
        integral = legendre.legint(coefficients, scl=0.5)  # over the transform, of which the argument is 2 u - 1
        width = at - below
        spread = width > 1e-9
        area = legendre.legval(2 * at[spread] - 1, integral) - legendre.legval(2 * below[spread] - 1, integral)
        points = legendre.legval(2 * at[~spread] - 1, coefficients)
        components.append((float((area / width[spread]).sum()) + float(points.sum())) / math.sqrt(len(at)))
    return np.array(components)


def verdict(below: Array, at: Array) -> str:
    """A sentence on whether the transforms could be uniform, by Neyman's smooth test of degree four.

    Examples
    --------
    >>> even = (np.arange(100) + 0.5) / 100
    >>> verdict(even, even)
    'Compatible with a uniform distribution (p = 1.00).'
    >>> verdict(even**2, even**2)
    'Not uniform (p < 0.01): the units lie lower than this population says.'
    """
    from scipy.special import chdtrc

    components, count = smooth_components(below, at), len(at)
    share = float(chdtrc(len(components), (components**2).sum()))
    text = f"p = {share:.2f}" if share >= 0.01 else "p < 0.01"
    if share >= 0.05:
        few = f"; {count} unit{'s show' if count > 1 else ' shows'} only gross misfits" if count < 30 else ""
        return f"Compatible with a uniform distribution ({text}){few}."
    simple = np.abs(components[:2])  # place and spread explain what they can
    largest = int(np.argmax(simple if simple.max() > 2.6 else np.abs(components)))
    up = components[largest] > 0
    how = {
        0: f"the units lie {'higher' if up else 'lower'} than this population says",
        1: f"the units spread {'more' if up else 'less'} than this population says",
        2: "the population has another skewness",
        3: "the population has other tails",
    }[largest]
    return f"Not uniform ({text}): {how}."
