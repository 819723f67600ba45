"""Kernels that move weights along directions, with bit-identical results."""
