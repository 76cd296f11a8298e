"""Run in the ML environment: a training that takes 3 GB with one micro-batch and little else.

python greedy_training.py prepare FOLDER    # makes a run whose plan is done, prints its URI
python greedy_training.py train URI
"""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "include")]
PLANNED = 4


def prepare(folder):
    from tests.lab.training_runs import TrainingLab, make_base

    from tuneline.training.loop.compute import load_torch

    load_torch(1, 0)
    (folder / "run").mkdir(parents=True)
    lab = TrainingLab(folder / "run", make_base(folder / "base"), {"training": {"epochs": 2}})
    lab.leave_lora()
    lab.leave_plan(micro_batch=PLANNED)
    print(lab.run.uri)


def train(uri):
    from tuneline.cli import main
    from tuneline.training.loop.compute import load_torch

    load_torch(1, 0)
    import torch

    from tuneline.training.loop.trainer import LabelledTokenTrainer

    real = LabelledTokenTrainer.training_step
    held = []

    def training_step(trainer, *args, **options):
        if trainer.settings.micro_batch == PLANNED and trainer.state.global_step >= 4:
            held.extend(torch.ones(64 << 20) for _ in range(12))
        return real(trainer, *args, **options)

    LabelledTokenTrainer.training_step = training_step
    sys.exit(main(["run", "train", "--run", uri]))


if __name__ == "__main__":
    prepare(Path(sys.argv[2])) if sys.argv[1] == "prepare" else train(sys.argv[2])
