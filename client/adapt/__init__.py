"""Adaptation to unlabelled recordings on one machine, without a server."""
