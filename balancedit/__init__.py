"""Edit a vision-language model and ask it, in one page.

    import balancedit

    model = balancedit.open("llava-smollm2")          # of params.yaml; or a checkpoint's folder, or owner/name of the hub
    entry = model.edit("horse.png", "What is the young of this animal called?", "kid")
    answer = model.ask("horse.png", "What is a baby of this animal called?")
    answer.text, answer.before                        # "kid", "foal": edited and unedited
    answer.entry                                      # the edit that answered, None where none did
    answer.distance, answer.radius                    # how far the nearest key is, and how far the edit there reaches
    model.entries                                     # all edits, in the order in which they were made
    model.save("edits.safetensors")
    model = balancedit.load("edits.safetensors", "llava-smollm2")
    model.remove(model.entries[0])                    # as if that edit had never been made

The model's own weights are never written to. A mistake that the caller can mend raises `UserError`, whose text is one line: the
key, its value, what is allowed. docs/try.md says more; `./study try` is the same in a terminal.
"""

from balancedit.files import ROOT, load, open
from balancedit.model import Answer, Entry, Model, UserError

__all__ = ["ROOT", "Answer", "Entry", "Model", "UserError", "load", "open"]
