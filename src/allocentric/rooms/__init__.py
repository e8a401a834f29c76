"""Procedural furnished rooms with exact ground truth, ray cast to `Views`."""

from allocentric.rooms.camera import walk
from allocentric.rooms.furniture import LABELS
from allocentric.rooms.generate import generate
from allocentric.rooms.layout import Room, make_room
from allocentric.rooms.raycast import render

__all__ = ["LABELS", "Room", "generate", "make_room", "render", "walk"]
