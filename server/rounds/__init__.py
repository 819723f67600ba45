"""Rounds: what is asked of devices, what is taken of their answers, and the step made of them."""
