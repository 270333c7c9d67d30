"""Texts from any endpoint that speaks OpenAI's chat-completions protocol, over the standard library's HTTP client."""

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from dataclasses import dataclass

from stages.okedit.providers.base import Cached, EndpointError, Provider
from stages.okedit.settings import text
from stages.params import UserError
from stages.sections import count, entry, number

# A wrong address, model or key stays wrong, whatever else is asked.
FATAL = {401: "key_env", 403: "key_env", 404: "url"}
LARGEST = 4_000_000  # bytes of an answer that are read


@dataclass(frozen=True)
class Settings:
    """`url` is the part before /chat/completions; `key_env` names the environment variable with the key ("": none)."""

    model: str = entry(text())
    url: str = entry(text(r"https?://\S+", "an address that starts with http:// or https://"))
    key_env: str = entry(text(r"\w*", "the name of an environment variable"), default="")
    temperature: float = entry(number(0, 2), default=1.0)
    max_tokens: int = entry(count(1), default=512)
    timeout: float = entry(number(above=0), default=60.0)
    retries: int = entry(count(0, 20), default=4)
    wait: float = entry(number(0), default=1.0)

    def open(self, at: str) -> Provider:
        """The provider; UserError names the entry `at`.key_env when the environment lacks the key."""
        if self.key_env and not os.environ.get(self.key_env):
            raise UserError(f"{at}.key_env: {self.key_env!r} is not set; allowed: an environment variable that holds the key")
        return Cached(OpenAI(at, self))


class OpenAI:
    """Asks again after `wait` seconds, twice that, and so on, `retries` times."""

    def __init__(self, at: str, settings: Settings):
        self.at, self.settings = at, settings
        s = settings
        self.identity = json.dumps(["openai", s.url, s.model, s.temperature, s.max_tokens])

    def make(self, prompt: str, seed: int, name: str) -> bytes:
        """The answer's text; UserError for a fault that no other question would mend."""
        for attempt in range(self.settings.retries + 1):
            if attempt:
                time.sleep(self.settings.wait * 2 ** (attempt - 1))
            try:
                return self._ask(prompt, seed).encode(errors="replace")  # JSON may hold half of a surrogate pair
            except EndpointError as error:
                failed = error
        raise failed

    def _ask(self, prompt: str, seed: int) -> str:
        s = self.settings
        body = {
            "model": s.model, "messages": [{"role": "user", "content": prompt}], "seed": seed % 2**31,
            "temperature": s.temperature, "max_tokens": s.max_tokens,
        }  # fmt: skip
        headers = {"Content-Type": "application/json"}
        if s.key_env:
            headers["Authorization"] = f"Bearer {os.environ[s.key_env]}"
        request = urllib.request.Request(f"{s.url.rstrip('/')}/chat/completions", json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=s.timeout) as reply:
                content = reply.read(LARGEST)
        except urllib.error.HTTPError as error:
            if error.code in FATAL:
                key = FATAL[error.code]
                raise UserError(
                    f"{self.at}.{key}: {getattr(s, key)!r}: the endpoint answered HTTP {error.code}; allowed: one it accepts"
                ) from None
            raise EndpointError(f"endpoint: HTTP {error.code}") from None
        except TimeoutError:
            raise EndpointError("endpoint: timed out") from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            timed_out = isinstance(reason, TimeoutError)
            raise EndpointError("endpoint: timed out" if timed_out else "endpoint: no connection") from None
        return _text(content)


def _text(reply: bytes) -> str:
    """The answer's text in a chat completion."""
    try:
        content = json.loads(reply)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError):
        raise EndpointError("endpoint: no chat completion") from None
    if not isinstance(content, str) or not content.strip():
        raise EndpointError("endpoint: an empty answer")
    return content
