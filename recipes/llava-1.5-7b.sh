#!/bin/sh
# LLaVA-1.5-7B: up_proj of the last decoder layer (31), on the embedded dataset.
# Hardware, estimated, not measured: a GPU with 40 GB (each picture has 576 tokens); 15 GB of disk for the download.
set -eu
cd "$(dirname "$0")/.."
HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-0}" ./study dvc exp run \
    -S '++backbones.llava-7b={checkpoint: llava-hf/llava-1.5-7b-hf, revision: main, dtype: bfloat16, device_map: auto}' \
    -S 'edited=[llava-smollm2,blip2-smollm2,llava-7b]' "$@"
