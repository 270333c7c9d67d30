#!/bin/sh
# The paper's BLIP-2: OPT-2.7B, fc2 of the last decoder layer (31), on the embedded dataset.
# Hardware, estimated, not measured: a GPU with 24 GB, or 32 GB of memory and patience on CPUs; 8 GB of disk for the download.
set -eu
cd "$(dirname "$0")/.."
HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-0}" ./study dvc exp run \
    -S '++backbones.blip2-opt={checkpoint: Salesforce/blip2-opt-2.7b, revision: main, dtype: bfloat16, device_map: auto}' \
    -S 'edited=[llava-smollm2,blip2-smollm2,blip2-opt]' "$@"
