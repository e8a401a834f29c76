"""Procedural furnished rooms with exact ground truth, ray cast to `Views`."""

from allocentric.rooms.camera import walk
from allocentric.rooms.furniture import LABELS
from allocentric.rooms.generate import generate
from allocentric.rooms.layout import Room, make_room
from allocentric.rooms.raycast import render
from allocentric.rooms.scene_io import write_video
from allocentric.scenes import load_scene, save_scene

__all__ = ["LABELS", "Room", "generate", "load_scene", "make_room", "render", "save_scene", "walk", "write_video"]
