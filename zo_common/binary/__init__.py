"""Bytes: bounded readers and writers, and files that are replaced whole or not at all."""
