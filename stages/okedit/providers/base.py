"""What a provider is, and the cache that lets an interrupted build go on where it was."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from stages.params import write_atomically

CACHE = Path("data/.cache/providers")


class ProviderError(Exception):
    """One item could not be had, and asking for another may succeed; the text is the reason that is counted."""


class EndpointError(ProviderError):
    """A failure of the service rather than of one item: when it lasts, no other item can be had either."""


class Provider(Protocol):
    """Makes one item: a text in UTF-8, or an encoded picture."""

    identity: str  # everything but prompt and seed that decides the item

    def make(self, prompt: str, seed: int, name: str) -> bytes:
        """The item for `prompt`; `name` is its place in the dataset, <edit>/<use>. Raises ProviderError."""


@dataclass(frozen=True)
class Cached:
    """A provider whose items are kept by the content of what was asked: the provider, the prompt and the seed."""

    provider: Provider
    folder: Path = CACHE

    @property
    def identity(self) -> str:
        return self.provider.identity

    def make(self, prompt: str, seed: int, name: str) -> bytes:
        """As the provider's; a kept item is not made again."""
        asked = json.dumps([self.identity, prompt, seed])
        digest = hashlib.sha256(asked.encode()).hexdigest()
        path = self.folder / digest[:2] / digest[2:34]
        if path.exists():
            return path.read_bytes()
        made = self.provider.make(prompt, seed, name)
        with write_atomically(path) as temporary:
            temporary.write_bytes(made)
        return made
