"""Bytes: bounded readers and writers, and atomic replacement of files."""
