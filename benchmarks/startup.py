"""Seconds from nothing to a loaded nano, beyond `import torch`.

    python benchmarks/startup.py [--rounds 5]

Every measurement is a fresh process that first imports torch, then does one of: import the transformers classes that any Qwen2.5-VL
needs, which are most of what is imported; import the library's `load`; import it and load nano. While nano's weights are not in the
package, random weights of its sizes are loaded from a folder. Medians of interleaved rounds.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import tyro

from _nano import SHIPPED, nano

STEPS = {
    "import torch": "",
    "Qwen2.5-VL of transformers": "from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor",
    "import of allocentric": "import allocentric; allocentric.load",
    "import and load nano": "import allocentric; model = allocentric.load({folder!r}); assert model.network.num_parameters() > 1e6",
}
# Prints seconds of import torch and of what follows, (wall, process) each.
PROGRAM = """
import json, time
now = lambda: (time.perf_counter(), time.process_time())
start = now()
import torch
middle = now()
{step}
end = now()
print(json.dumps([[b - a for a, b in zip(*pair)] for pair in ((start, middle), (middle, end))]))
"""


def measure(step: str) -> tuple[list[float], list[float]]:
    """((wall, process) of importing torch, (wall, process) of the step), seconds, in a fresh process on one thread."""
    limits = "import os; os.environ['OMP_NUM_THREADS'] = '1'"
    done = subprocess.run([sys.executable, "-c", limits + PROGRAM.format(step=step)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{step}: {done.stderr.strip().splitlines()[-1]}")
    return tuple(json.loads(done.stdout.splitlines()[-1]))


def save_random_nano(folder: Path) -> None:
    model, processor = nano()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def main(rounds: int = 5) -> None:
    """Import and load times, seconds beyond `import torch`.

    Args:
        rounds: fresh processes per row.
    """
    with tempfile.TemporaryDirectory() as temporary:
        shipped = (SHIPPED / "config.json").is_file()
        if not shipped:
            save_random_nano(Path(temporary))
        steps = {name: step.format(folder=None if shipped else temporary) for name, step in STEPS.items()}
        seconds: dict[str, list[list[float]]] = {name: [] for name in steps}
        for _ in range(rounds):
            for name, step in steps.items():
                torch, rest = measure(step)
                seconds[name].append(rest if step else torch)

    print(f"nano {'as shipped' if shipped else 'with random weights'}, median of {rounds} fresh processes")
    print(f"{'step':<32}{'wall s':>8}{'process s':>11}{'/ torch':>9}")
    base = statistics.median(process for _, process in seconds["import torch"])
    for name, runs in seconds.items():
        wall, process = (statistics.median(values) for values in zip(*runs, strict=True))
        label = name if name == "import torch" else f"  + {name}"
        print(f"{label:<32}{wall:>8.2f}{process:>11.2f}{process / base:>9.2f}")


if __name__ == "__main__":
    tyro.cli(main)
