"""Furniture from real 3D models, where Debian's `sweethome3d-furniture` package is installed. Nothing of it is shipped here.

The package holds zip files (.sh3f), each with a properties catalog (names and sizes in centimetres) and OBJ models with MTL
materials, y up and front towards +z. Models are read on first use and kept in memory.
"""

import re
import zipfile
from dataclasses import replace
from functools import cache
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from allocentric.rooms.furniture import CATALOG, Kind, Rng
from allocentric.rooms.mesh import Color, Material, Mesh

FOLDER = Path("/usr/share/sweethome3d/furniture")
ARCHIVES = ("BlendSwap-CC-0.sh3f", "BlendSwap-CC-BY.sh3f", "KatorLegaz.sh3f", "Scopia.sh3f")

# Which model (by OBJ name, without ending) goes by which of our labels. Others are not used.
_MODELS = {
    "armchair": "armchair2 modernArmchair winchesterArmchair armchair1 fotel armChair2 mid-century-chair armchair "
    "modern_armchair rattanArmchair",
    "backpack": "backpack",
    "ball": "basketball ballonFoot",
    "bathtub": "bath_jay_hardy islandBath",
    "bed": "bed1 bed2 bed3 juniorBed captains-bed hospital-bed",
    "bicycle": "bike bicycle",
    "bookshelf": "bookcase shelves verticalShelves full-bookcase utility-shelving kids_shelves",
    "box": "cardboard-box open-cardboard-box",
    "chair": "plasticChair sillaBlanca chair antiqueChair chairWithCushion chair2 thonet cafe_set_tonon_chair ella_chair_f "
    "plaidChair kitchenChair chair3 chair4 dining-chair office-chair office_chair tubular_chair white_kitchen_chair",
    "coffee table": "coffeeTable coffee_table table_wood_and_iron coffee-table2 rattanTable",
    "crib": "crib babyRockingBed",
    "desk": "lbDesk biurko3 simpleDesk kids_wooden_desk officeTable",
    "dresser": "dresserWithDrawers",
    "fireplace": "fireplace1",
    "floor lamp": "living_lamp",
    "guitar": "electricGuitar",
    "ladder": "step-ladder-metal step-ladder-wood",
    "laptop": "laptop apple-ibook-2001",
    "microwave": "microwave",
    "monitor": "apple_pc apple-imac-1998",
    "nightstand": "bedsideTable2 bedsideTable",
    "piano": "piano",
    "plant": "decorativePlant plant mediumIndoorPlant maceta augalas spider_plant",
    "radiator": "radiator1 radiator modernRadiator radiator3",
    "refrigerator": "refrigerator largeFridge fridge",
    "rug": "oriental-rug",
    "sink": "washbasin washbasin_jay_hardy modernVanity kitchenSink",
    "sofa": "couch sofa2 winchesterSofa sofa3 couch3 futon-couch mid-century-bench-sofa mid-century-sofa clear_sofa "
    "simple_sofa burlap_sofa leather_sofa sofa_white_beige rattanSofa",
    "stool": "silla2 stool stool2 green_stool kitchen_stool",
    "stove": "largeStove",
    "suitcase": "suitcase",
    "table": "oakTable table tableWithTablecloth folding-table glass-dining-table black_table table4 "
    "wooden_table_office wooden_office_pear_table_rect white_kitchen_table table-on-trestles table-with-leaning-feet round-table",
    "table lamp": "lamp little_lamp1 little_lamp2 table_lamp livingroom_lamp1",
    "toilet": "toiletsUnit toilets_unit_jay_hardy modernToilet",
    "trash bin": "dustbin bullet-trash-can residential-trashcan",
    "treadmill": "treadmill",
    "tv": "led_tv wall-flat-tv",
    "tv stand": "tvStand",
    "wardrobe": "wardrobe wardrobe1 wardrobe2 wardrobeWithSlidingDoors",
    "washer": "washing_machine clothes_washing_machine",
}
_SIDEWAYS = ("bicycle", "ladder")  # set along the wall rather than out from it
_LARGEST = 2_000_000  # bytes of OBJ text: heavier models would slow rendering for detail nobody sees


def model_catalog(folder: Path = FOLDER) -> dict[str, Kind]:
    """The labels for which models are installed, placed by the rules of the built-in catalog."""
    models = _installed(folder)
    out = {}
    for label, names in models.items():

        def build(rng: Rng, label: str = label, names: tuple[tuple[str, str], ...] = names) -> Mesh:
            archive, model = names[rng.integers(len(names))]
            return _resized(load_model(Path(archive), model), rng, label in _SIDEWAYS)

        out[label] = replace(CATALOG[label], build=build)
    return out


@cache
def _installed(folder: Path) -> dict[str, tuple[tuple[str, str], ...]]:
    archives = [folder / name for name in ARCHIVES if (folder / name).is_file()]
    if not archives:
        raise FileNotFoundError(
            f"style 'models' needs the 3D models of Debian's sweethome3d-furniture, not found in {folder}; "
            "install them with: apt-get install sweethome3d-furniture"
        )
    wanted = {name: label for label, names in _MODELS.items() for name in names.split()}
    out: dict[str, list[tuple[str, str]]] = {}
    for archive in archives:
        for path, entry in _entries(archive).items():
            label = wanted.get(PurePosixPath(path).stem)
            if label is not None and entry["bytes"] <= _LARGEST:
                out.setdefault(label, []).append((str(archive), path))
    return {label: tuple(sorted(out[label])) for label in sorted(out)}


@cache
def _entries(archive: Path) -> dict[str, dict]:
    """Catalog of one archive: OBJ path -> size in metres (width, depth, height), 3x3 model rotation, OBJ bytes."""
    with zipfile.ZipFile(archive) as z:
        text = z.read("PluginFurnitureCatalog.properties").decode("latin-1")
        rows: dict[str, dict[str, str]] = {}
        for key, number, value in re.findall(r"^(\w+)#(\d+)\s*=\s*(.*)$", text, re.M):
            rows.setdefault(number, {})[key] = value.strip()
        out = {}
        for row in rows.values():
            path = row.get("model", "").lstrip("/")
            if path.endswith(".obj") and path in z.NameToInfo and {"width", "depth", "height"} <= row.keys():
                size = np.array([float(row[k]) for k in ("width", "depth", "height")]) / 100
                turn = [float(v) for v in row["modelRotation"].split()] if row.get("modelRotation") else np.eye(3).ravel()
                out[path] = {"size": size, "turn": np.array(turn).reshape(3, 3), "bytes": z.getinfo(path).file_size}
    return out


def _resized(mesh: Mesh, rng: Rng, sideways: bool) -> Mesh:
    """A copy with each side 10 % longer or shorter, so that a model is not one size."""
    scale = rng.uniform(0.92, 1.08) * rng.uniform(0.95, 1.05, 3)
    out = Mesh()
    out.parts = [p * scale for p in mesh.parts]
    out.part_material = list(mesh.part_material)
    if sideways:
        out.turn(0, "z", np.pi / 2)
    return out


@cache
def load_model(archive: Path, path: str) -> Mesh:
    """One model in our frame: metres, x width, front +y, z up, scaled to its catalog size."""
    entry = _entries(archive)[path]
    with zipfile.ZipFile(archive) as z:
        groups, libraries = _parse_obj(z.read(path).decode("latin-1"))
        materials: dict[str, Material] = {}
        for library in libraries:
            where = str(PurePosixPath(path).parent / library)
            if where in z.NameToInfo:
                materials |= _parse_mtl(z, where)
    mesh = Mesh()
    every = np.concatenate(list(groups.values())) @ entry["turn"].T
    every = np.stack([-every[..., 0], every[..., 2], every[..., 1]], axis=-1)
    lo, hi = every.reshape(-1, 3).min(axis=0), every.reshape(-1, 3).max(axis=0)
    every = (every - lo) * (entry["size"] / np.maximum(hi - lo, 1e-9))
    at = 0
    for name, faces in groups.items():
        mesh.add(every[at : at + len(faces)], materials.get(name, _default(name)))
        at += len(faces)
    return mesh


# The archive's own models lean on a few named materials that have no library beside them.
_NAMED = {"white": (0.9, 0.9, 0.9), "black": (0.06, 0.06, 0.06), "chrome": (0.75, 0.76, 0.78), "wood": (0.6, 0.42, 0.25),
          "dkwood": (0.35, 0.22, 0.13), "brass": (0.7, 0.58, 0.3), "glass": (0.6, 0.7, 0.75), "flgreen": (0.2, 0.5, 0.2),
          "flred": (0.7, 0.15, 0.12), "blue": (0.2, 0.3, 0.7), "bluteal": (0.2, 0.5, 0.55), "brown": (0.4, 0.26, 0.15),
          "tan": (0.75, 0.62, 0.45), "gold": (0.8, 0.65, 0.25), "fldkdkgray": (0.2, 0.2, 0.2),
          "flltgrey": (0.7, 0.7, 0.7)}  # fmt: skip


def _default(name: str) -> Material:
    return Material(_NAMED.get(name, (0.65, 0.64, 0.62)))


def _parse_obj(text: str) -> tuple[dict[str, np.ndarray], list[str]]:
    """Triangles (n, 3, 3) by material name, and the material libraries named."""
    vertices: list[list[str]] = []
    faces: dict[str, list[tuple[int, int, int]]] = {}
    libraries: list[str] = []
    current = faces.setdefault("", [])
    for line in text.replace("\\\n", " ").splitlines():
        if line.startswith("v "):
            vertices.append(line.split()[1:4])
        elif line.startswith("f "):
            corner = [int(c.split("/", 1)[0]) for c in line.split()[1:]]
            corner = [c - 1 if c > 0 else len(vertices) + c for c in corner]
            current.extend((corner[0], corner[i], corner[i + 1]) for i in range(1, len(corner) - 1))
        elif line.startswith("usemtl"):
            current = faces.setdefault(line[6:].strip(), [])
        elif line.startswith("mtllib"):
            libraries.append(line[6:].strip())
    points = np.array(vertices, dtype=np.float64)
    return {name: points[np.array(f)] for name, f in faces.items() if f}, libraries


def _parse_mtl(z: zipfile.ZipFile, path: str) -> dict[str, Material]:
    out: dict[str, Material] = {}
    name = None
    for line in z.read(path).decode("latin-1").splitlines():
        words = line.split()
        if not words:
            continue
        if words[0] == "newmtl":
            name = line.split(None, 1)[1].strip() if len(words) > 1 else ""
            out[name] = _default(name)
        elif words[0] == "Kd" and name is not None and len(words) >= 4:
            out[name] = Material(tuple(float(np.clip(float(w), 0.02, 0.98)) for w in words[1:4]))
        elif words[0] == "map_Kd" and name is not None:
            image = str(PurePosixPath(path).parent / words[-1])
            if image in z.NameToInfo:
                out[name] = _texture(z, image)
    return out


def _texture(z: zipfile.ZipFile, image: str) -> Material:
    """A picture's two main tones as a speckle; good enough where texture coordinates are not kept."""
    with z.open(image) as f:
        pixels = np.asarray(Image.open(f).convert("RGB").resize((16, 16)), dtype=np.float64).reshape(-1, 3) / 255
    order = pixels.sum(axis=1).argsort()
    dark, light = pixels[order[:128]].mean(axis=0), pixels[order[128:]].mean(axis=0)
    return Material(_rgb(light), _rgb(dark), "speckle", 0.03)


def _rgb(c: np.ndarray) -> Color:
    r, g, b = np.clip(c, 0.02, 0.98)
    return float(r), float(g), float(b)
