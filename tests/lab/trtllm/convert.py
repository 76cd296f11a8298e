"""Stand-in of convert_checkpoint.py."""

import tempfile
from pathlib import Path

from tests.lab.trtllm.parser import parse_own
from tests.lab.trtllm.weights import export, write_checkpoint


def main() -> None:
    arguments = parse_own("convert_checkpoint.py")
    with tempfile.TemporaryDirectory() as scratch:
        gguf = Path(scratch) / "f16.gguf"
        config = export(Path(arguments.model_dir), gguf)
        write_checkpoint(Path(arguments.output_dir), gguf, config, arguments)


if __name__ == "__main__":
    main()
