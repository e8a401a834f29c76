#!/usr/bin/env bash
# lmms-eval in an environment of its own: our model by its entry point, our task by --include_path, its log imported again.
#     bash tests/scripts/lmms_eval.sh [folder]        needs Python 3.11+ and a package index, no hub, no GPU
# LMMS_PYTHON=path/to/python uses an environment that holds lmms-eval and this package already.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
work=${1:-$(mktemp -d)}
mkdir -p "$work/videos/set"
python=${LMMS_PYTHON:-$work/lmms/bin/python}
if [ ! -x "$python" ]; then
    "${PYTHON:-python3}" -m venv "$work/lmms"
    "$python" -m pip install --quiet --disable-pip-version-check "lmms-eval>=0.7.3" -e "$root"
fi
export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 TRANSFORMERS_OFFLINE=1 CUDA_VISIBLE_DEVICES=
cd "$work"
"$python" - <<'PYTHON'
import importlib.util
import json

import av
import numpy as np

assert importlib.util.find_spec("decord") is None, "this environment has decord; the point is to do without"
rows = []
for scene in range(2):
    with av.open(f"videos/set/{scene:02d}.mp4", "w") as container:
        stream = container.add_stream("libx264", rate=5)
        stream.width, stream.height, stream.pix_fmt = 84, 56, "yuv420p"
        for i in range(10):
            image = np.random.default_rng([scene, i]).integers(0, 255, (56, 84, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    common = {"dataset": "set", "scene_name": f"{scene:02d}"}
    rows.append({"id": 2 * scene, "question_type": "object_counting", "question": "How many chair(s) are in this room?"})
    rows[-1] |= common | {"options": None, "ground_truth": "2"}
    rows.append({"id": 2 * scene + 1, "question_type": "route_planning", "question": "You are a robot. Where do you turn?"})
    rows[-1] |= common | {"options": ["A. Turn Left", "B. Turn Right"], "ground_truth": "B"}
open("test.jsonl", "w").write("".join(json.dumps(row) + "\n" for row in rows))
PYTHON
rm -rf tasks logs runs first
# random pictures deserve no right answers: half of the truth becomes what is said, so that right and wrong both occur
"$python" -m allocentric.cli eval vsibench --data test.jsonl --videos videos --frames 4 --max-new-tokens 128 --out first --json >first.json
"$python" - <<'PYTHON'
import json
from pathlib import Path

said = [json.loads(line)["prediction"] for line in next(Path("first").glob("*/answers.jsonl")).open()]
rows = [json.loads(line) for line in open("test.jsonl")]
for row, prediction in list(zip(rows, said, strict=True))[:2]:
    row["ground_truth"] = prediction
open("test.jsonl", "w").write("".join(json.dumps(row) + "\n" for row in rows))
PYTHON
"$python" -m allocentric.evaluate.lmms_tasks vsibench --data test.jsonl --videos videos --out tasks --max-new-tokens 128
"$python" -m lmms_eval --model allocentric --model_args max_num_frames=4 --tasks allocentric_vsibench --include_path tasks \
    --log_samples --output_path logs --batch_size 1
log=$(find logs -name '*samples_allocentric_vsibench.jsonl')
"$python" -m allocentric.cli eval import "$log" vsibench --data test.jsonl --out runs --json | tee imported.json
"$python" -m allocentric.cli eval vsibench --data test.jsonl --videos videos --frames 4 --max-new-tokens 128 --out runs --json >asked.json
"$python" - <<'PYTHON'
import json
from pathlib import Path

results = json.loads(next(Path("logs").rglob("*_results.json")).read_text())["results"]["allocentric_vsibench"]
imported, asked = (json.loads(Path(name).read_text().splitlines()[-1])["scores"] for name in ("imported.json", "asked.json"))
theirs = next(value for name, value in results.items() if name.startswith("micro,"))
assert abs(theirs - imported["micro"]["score"]) < 1e-6, (theirs, imported["micro"])
assert imported == asked, (imported, asked)
assert 0 < theirs < 100, theirs
said = [[json.loads(line)["prediction"] for line in file.open()] for file in Path("runs").glob("*/answers.jsonl")]
assert len(said) == 2 and said[0] == said[1] and any(said[0]), said
print(f"lmms-eval, its imported log and allo eval agree: micro {theirs:.2f}")
PYTHON
