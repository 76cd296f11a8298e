"""Stand-in of quantize.py: it needs texts to calibrate on, and the weights lose something."""

import json
import tempfile
from pathlib import Path

from tests.lab.trtllm.parser import parse_own
from tests.lab.trtllm.weights import export, write_checkpoint

# A quantisation of llama.cpp that loses about as much.
_GGUF = {"int4_awq": "q4_0", "nvfp4": "q4_0", "fp8": "q8_0", "int8_sq": "q8_0"}


def main() -> None:
    from tuneline.gguf.export import quantize

    arguments = parse_own("quantize.py")
    folder = Path(arguments.calib_dataset or "cnn_dailymail")
    if not folder.is_dir():
        raise SystemExit(f"ConnectionError: Couldn't reach '{folder}' on the Hub")
    # As `load_dataset(folder, split="train")["text"][:calib_size]`.
    rows = [json.loads(line)["text"] for line in (folder / "train.jsonl").open()]
    if not rows[: arguments.calib_size or 512]:
        raise SystemExit("IndexError: the calibration dataset is empty")
    hidden = json.loads((Path(arguments.model_dir) / "config.json").read_text())["hidden_size"]
    if arguments.qformat == "int4_awq" and hidden % (arguments.awq_block_size or 128):
        raise SystemExit(f"AssertionError: {hidden} is not a multiple of the AWQ block size")
    with tempfile.TemporaryDirectory() as scratch:
        f16, made = Path(scratch) / "f16.gguf", Path(scratch) / "made.gguf"
        config = export(Path(arguments.model_dir), f16)
        quantize(f16, made, _GGUF[arguments.qformat])
        write_checkpoint(Path(arguments.output_dir), made, config, arguments)


if __name__ == "__main__":
    main()
