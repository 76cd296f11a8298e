"""Training processes of which one thing is changed, by `PLANT`.

    python patched_worker.py RUN_URI SCRATCH     starts two of them

`per_rank`: each process divides by its own tokens, so that a token next to short rows counts for
more. `packed`: rows are packed with the model's own attention, where no GPU has FlashAttention.
`small_gpu`: any base would fill a GPU; each process notes in `NOTES` what it holds of it.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from tuneline.training.loop.processes import Node, launch, main
from tuneline.training.loop.token_loss import target_weight


def plant() -> None:
    if os.environ["PLANT"] == "packed":
        from tuneline.training.resources import checks

        checks.packing_attention = lambda *_: "sdpa"
        return
    if os.environ["PLANT"] == "small_gpu":
        note_bases_of_small_gpus()
        return
    from tuneline.training.loop.trainer import LabelledTokenTrainer

    def own_tokens(self: Any, batch_samples: list[Any], device: Any) -> Any:
        return target_weight(batch_samples).to(device) * self.args.world_size

    LabelledTokenTrainer._get_num_items_in_batch = own_tokens


def note_bases_of_small_gpus() -> None:
    from tuneline.training import train

    attach = train.attach_lora

    def noting(base: Any, *given: Any) -> Any:
        held = [(type(part).__name__, part.numel()) for part in base.parameters()]
        Path(os.environ["NOTES"], f"base-{os.environ['RANK']}.json").write_text(json.dumps(held))
        return attach(base, *given)

    train.gpu_memory, train.attach_lora = lambda _: 1, noting


if __name__ == "__main__":
    uri, folder = sys.argv[1], Path(sys.argv[2])
    if "RANK" in os.environ:
        plant()
        sys.exit(main(uri, folder))
    launch(Node(0, 1, 2, "127.0.0.1:0"), uri, folder, threads=1, worker=[__file__])
