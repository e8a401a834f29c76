"""Allocentric: what a camera saw, turned into knowledge of the place."""
