"""Speech models: loading, forward passes and the losses that a step perturbs."""
