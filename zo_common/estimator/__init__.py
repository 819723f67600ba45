"""The randomised gradient estimator, and curvature, noise and calibration from its forward passes."""
