"""The randomised gradient estimator and what its forward passes tell besides."""
