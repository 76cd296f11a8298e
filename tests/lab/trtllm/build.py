"""Stand-in of trtllm-build."""

import json
import os
from pathlib import Path

from tests.lab.trtllm.parser import parse_own


def main() -> None:
    from safetensors.numpy import load_file

    arguments = parse_own("trtllm-build")
    checkpoint, out = Path(arguments.checkpoint_dir), Path(arguments.output_dir)
    pretrained = json.loads((checkpoint / "config.json").read_text())
    longest = arguments.max_seq_len or pretrained["max_position_embeddings"]
    if (arguments.max_input_len or 1024) > longest:
        raise SystemExit(f"ValueError: max_input_len is larger than max_seq_len ({longest})")
    out.mkdir(parents=True)
    build = {
        "max_batch_size": arguments.max_batch_size or 2048,
        "max_input_len": arguments.max_input_len or 1024,
        "max_seq_len": longest,
        "max_num_tokens": arguments.max_num_tokens or 8192,
        "gather_context_logits": arguments.gather_context_logits,
    }
    version = os.environ["TRTLLM_LAB_VERSION"]
    document = {"version": version, "pretrained_config": pretrained, "build_config": build}
    (out / "config.json").write_text(json.dumps(document, indent=4))
    header = {"compute": os.environ["TRTLLM_LAB_SM"], "version": version}
    # Real plans are large.
    header["padding"] = "0" * int(os.environ.get("TRTLLM_LAB_PADDING", "0"))
    gguf = load_file(checkpoint / "rank0.safetensors")["gguf"].tobytes()
    (out / "rank0.engine").write_bytes(json.dumps(header).encode() + b"\n" + gguf)


if __name__ == "__main__":
    main()
