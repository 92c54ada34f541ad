"""Answers are spans of a text, or "there is no answer": MiniLM on invented facts.

    python examples/question_answering.py

Long contexts are read in windows that overlap (`doc_stride`); the metrics are told
apart for questions that have an answer and for those that have none.
"""

import loralab

QUICK = [
    "data.max_rows={train: 96, validation: 16, test: 32}",
    "training.max_steps=4",
]  # leave them out to train on 6,000 rows
CONTEXT = "The bridge of Oldham was built by Ada Wren in 1911. It is 340 metres long."
QUESTIONS = ["Who built the bridge of Oldham?", "How long is the bridge of Oldham?"]


def main() -> None:
    """Train, show the metrics, and ask about a text."""
    run = loralab.train(loralab.compose("facts-qa", QUICK))
    metrics = run.evaluations()["test"]["metrics"]
    for name in ("token-f1", "exact-match"):
        base, adapter = (metrics[name][arm]["value"] for arm in ("base", "adapter"))
        print(f"{name}: base {base:.3f}, adapter {adapter:.3f}")
    ask = loralab.InferencePipeline.from_run(run)
    given = [(question, CONTEXT) for question in QUESTIONS]
    for question, found in zip(QUESTIONS, ask(given), strict=True):
        print(f"{question} {found['answer'] or '(no answer)'}")


if __name__ == "__main__":
    main()
