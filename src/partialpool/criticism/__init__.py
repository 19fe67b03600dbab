"""Whether to trust a fit: comparison, predictive checks, sensitivity, diagnosis, calibration."""
