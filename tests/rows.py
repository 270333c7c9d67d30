"""One edit with its probes and samples, on the tiny backbone's pictures."""

ROW = {
    "edit_id": "colour-red", "split": "test", "relation": "colour", "concept": "thing", "question": "What is it?",
    "image_id": "red", "answer": "red", "target": "ox", "rephrasings": ["Tell: what?", "Say it?"],
    "generality_image_ids": ["noise", "red"],
    "locality": [
        {"kind": "other_question", "image_id": "red", "question": "Who owns it?", "answer": "me"},
        {"kind": "no_image", "image_id": None, "question": "What is it?", "answer": ""},
    ],
    "hops": [{"n": 1, "question": "And then?", "image_id": "red", "answer_before": "a", "answer_after": "b"}],
}  # fmt: skip
SAMPLES = [
    {"kind": "sample_positive", "question": "What might it be?", "image_id": "red"},
    {"kind": "sample_black", "question": "What is it?", "image_id": "noise"},
]
