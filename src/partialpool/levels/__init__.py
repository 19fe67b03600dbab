"""Questions about levels, answered on top of a fit: order, pooling, variance, context, interactions."""
