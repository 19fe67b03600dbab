"""What the user asks for: formula, family, priors, covariance, hyperparameters."""
