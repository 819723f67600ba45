"""Hostile devices: what each attack does under each rule."""
