"""Rounds: plans for devices, replies, the size of the step, and the update of the model."""
