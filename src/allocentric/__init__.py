"""Allocentric: what a camera saw, turned into knowledge of the place.

    model = allocentric.load()
    scene = model.watch("room.mp4")
    scene.ask("How many chair(s) are in this room?")
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from allocentric.answer import Answer
    from allocentric.geometry.boxes import Box3D
    from allocentric.graph.scene_graph import SceneGraph
    from allocentric.model import Model, load
    from allocentric.models.scene import Scene
    from allocentric.readers import open_scene, open_views
    from allocentric.sampling import sample
    from allocentric.scenes import AnnotatedScene
    from allocentric.views import Views

__version__ = "0.1.0"
__all__ = [
    "AnnotatedScene", "Answer", "Box3D", "Model", "Scene", "SceneGraph", "Views", "load", "open_scene", "open_views", "sample",
]  # fmt: skip

_HOME = {
    "AnnotatedScene": "scenes",
    "Answer": "answer",
    "Box3D": "geometry.boxes",
    "Model": "model",
    "Scene": "models.scene",
    "SceneGraph": "graph.scene_graph",
    "Views": "views",
    "load": "model",
    "open_scene": "readers",
    "open_views": "readers",
    "sample": "sampling",
}


def __getattr__(name: str):
    """Public names are imported when they are first used: `allo --help` need not wait for torch."""
    if name not in _HOME:
        raise AttributeError(f"module 'allocentric' has no attribute {name!r}")
    import gc
    from importlib import import_module

    # nearly all objects that transformers and torch's compiler make while they are imported stay; looking through them in vain,
    # again and again, takes Python's collector about a quarter of the time
    working = gc.isenabled()
    gc.disable()
    try:
        return getattr(import_module(f"allocentric.{_HOME[name]}"), name)
    finally:
        if working:
            gc.enable()


def __dir__() -> list[str]:
    return sorted(__all__)
