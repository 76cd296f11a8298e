"""Make runs of a tiny base that only have to be trained, and print their URIs.

python -m tests.lab.planned_runs FOLDER MICRO_BATCH SETTINGS...
"""

import json
import sys
from pathlib import Path

from tests.lab.training_runs import TrainingLab, make_base

from tuneline.training.loop.model import load_torch

if __name__ == "__main__":
    load_torch(1, 0)
    folder, micro_batch, *settings = sys.argv[1:]
    base = make_base(Path(folder) / "base")
    for number, sections in enumerate(settings):
        root = Path(folder) / f"run-{number}"
        root.mkdir()
        lab = TrainingLab(root, base, json.loads(sections))
        lab.prepare(int(micro_batch))
        print(lab.run.uri)
