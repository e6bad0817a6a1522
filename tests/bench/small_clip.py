"""A small open_clip model from a seed, to measure and to try the encoders with:

    python -m tests.bench.small_clip FOLDER

Its weights are random and UNTRAINED: what it says of images and texts means nothing. FOLDER is then
`encoders: {image: {name: open_clip, model: "local-dir:FOLDER"}}`.
"""

import json
import sys
from pathlib import Path
from typing import Any

from fedray.encoders._torchvision import mend_torchvision

SMALL = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 64, "patch_size": 16, "layers": 4, "width": 128, "head_width": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}


def write(folder: Path, model: dict[str, Any], seed: int = 0) -> Path:
    """An untrained model of this configuration in `folder`, as open_clip's `local-dir:` reads it."""
    mend_torchvision()
    import torch
    from open_clip.model import CLIP
    from open_clip.transform import PreprocessCfg
    from safetensors.torch import save_file

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = CLIP(**model)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in made.state_dict().items()}, folder / "open_clip_model.safetensors")
    preprocess = {**vars(PreprocessCfg()), "size": model["vision_cfg"]["image_size"]}
    body = {"model_cfg": model, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(body, indent=2), encoding="utf-8")
    return folder


def main(arguments: list[str]) -> int:
    """Exit code 2 without exactly one folder."""
    if len(arguments) != 1:
        print(__doc__)
        return 2
    print(f"untrained open_clip model in {write(Path(arguments[0]), SMALL)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
