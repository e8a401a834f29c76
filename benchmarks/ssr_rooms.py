"""SSRs that a recipe has trained, on rooms nobody trained on: maps, boxes, and the eight tasks with and without maps.

    python benchmarks/ssr_rooms.py out/ssr_nano --recipe recipes/ssr_nano.yaml --rooms 200

Writes report.md and report.json into the run's folder. What the models wrote is kept there, so running it again goes on.
"""

import argparse
from pathlib import Path

from allocentric.cli import show_progress
from allocentric.evaluate.ssr import Plan, report
from allocentric.train.recipe import SSRTraining, read_recipe
from allocentric.train.ssr import smoke

RECIPE = Path(__file__).parents[1] / "recipes" / "ssr_nano.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "run", type=Path, nargs="?", help="the folder that was given to allo train; without one there is nothing to score"
    )
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    parser.add_argument("--rooms", type=int, default=200)
    parser.add_argument("--per-task", type=int, default=2, help="questions of each type per room")
    parser.add_argument("--descriptions", type=int, default=4, help="described objects per room")
    parser.add_argument("--smoke", action="store_true", help="the run was a smoke run")
    arguments = parser.parse_args()
    if arguments.run is None:  # as `make bench` runs it
        parser.print_usage()
        return
    recipe = read_recipe(arguments.recipe)
    if not isinstance(recipe, SSRTraining):
        parser.error(f"{arguments.recipe}: found another kind of recipe, expected kind: ssr")
    recipe = smoke(recipe) if arguments.smoke else recipe
    plan = Plan(arguments.rooms, arguments.per_task, arguments.descriptions)
    print(report(recipe, arguments.run, plan, show_progress).read_text())


if __name__ == "__main__":
    main()
