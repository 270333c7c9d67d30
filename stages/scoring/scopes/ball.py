"""The paper's scope, a ball around one key: near is what is near in picture and question taken together (Guo et al., section
4.2). GRACE's is the same with a constant radius (Hartvigsen et al., NeurIPS 2023, section 3).
"""

from stages.scoring.scopes import Part
from stages.settings import Method


def parts(method: Method) -> tuple[Part, ...]:
    """The key and the samples of params.yaml."""
    return (Part(method.key.span, "positive", method.radius.positives, method.radius.negative),)
