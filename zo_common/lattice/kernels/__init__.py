"""Kernels that move weights along directions, equal to the bit."""
