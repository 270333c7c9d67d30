"""Two keys, both within: a query must show what the edit shows, and ask what it asks.

One mean over the prompt hardly tells another question about the same picture from a rephrased one, because most of its positions
are the picture's. Here the picture is keyed where it enters the language model, by what the connector makes of it, and the
question at the last token of the prompt, which has read both. Each radius is balanced as the paper balances its one: the
picture's between views of the edit's own picture and the most alike other picture, the question's between rephrasings and another
question about the same picture. No other edit is needed. One weight α, chosen as BalancEdit's, serves both.
"""

from stages.scoring.scopes import Part
from stages.settings import POSITIVES, VIEWS, Method

PICTURE, QUESTION = "picture", "last"  # an entry of `keys`, and a span of the edited layer


def parts(method: Method) -> tuple[Part, ...]:
    """The picture's part and the question's."""
    return Part(PICTURE, "view", VIEWS, ["nearest"]), Part(QUESTION, "positive", POSITIVES, ["other_question"])
