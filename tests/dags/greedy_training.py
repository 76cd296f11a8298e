"""Run in the ML environment: a training that takes 3 GB with one micro-batch and little else.

python greedy_training.py URI    # of a run that is planned with a micro-batch of 4
"""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "include")]
PLANNED = 4


def train(uri):
    from tuneline.cli import main
    from tuneline.training.loop.model import load_torch

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
    train(sys.argv[1])
