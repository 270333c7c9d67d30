"""Texts from a language model that `transformers` loads: a folder, or a GGUF file in one."""

import json
from dataclasses import dataclass

import torch

from stages.okedit.providers.base import Cached, Provider
from stages.okedit.settings import text
from stages.params import UserError
from stages.sections import count, entry, number


@dataclass(frozen=True)
class Settings:
    """`model` is a folder or a hub's name, `gguf` a file name in it ("": ordinary weights)."""

    model: str = entry(text())
    gguf: str = entry(text(r"[^/]*", "a file name"), default="")
    temperature: float = entry(number(0, 2), default=0.8)
    max_tokens: int = entry(count(1), default=512)

    def open(self, at: str) -> Provider:
        """The provider; the model is loaded when the first text is not in the cache."""
        return Cached(Transformers(at, self))


class Transformers:
    """Samples one continuation of the prompt, in the model's chat format where it has one."""

    def __init__(self, at: str, settings: Settings):
        self.at, self.settings = at, settings
        s = settings
        self.identity = json.dumps(["transformers", s.model, s.gguf, s.temperature, s.max_tokens])
        self._loaded: tuple | None = None

    def _load(self) -> tuple:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        s = self.settings
        weights = {"gguf_file": s.gguf} if s.gguf else {}
        try:
            tokenizer = AutoTokenizer.from_pretrained(s.model, **weights, trust_remote_code=False)
            model = AutoModelForCausalLM.from_pretrained(s.model, dtype=torch.float32, **weights, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise UserError(f"{self.at}.model: {s.model!r} cannot be loaded: {error}") from None
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return tokenizer, model.eval().to(device)

    @torch.no_grad()
    def make(self, prompt: str, seed: int, name: str) -> bytes:
        """The continuation, drawn with `seed`; the global generator is left as it was."""
        self._loaded = self._loaded or self._load()
        tokenizer, model = self._loaded
        if tokenizer.chat_template:
            asked = [{"role": "user", "content": prompt}]
            prompt = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=not tokenizer.chat_template).to(model.device)
        drawn = (
            {"do_sample": True, "temperature": self.settings.temperature} if self.settings.temperature else {"do_sample": False}
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            ids = model.generate(**inputs, max_new_tokens=self.settings.max_tokens, pad_token_id=tokenizer.eos_token_id, **drawn)
        return tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).encode()
