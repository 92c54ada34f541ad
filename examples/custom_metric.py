"""A metric of your own: the recall of one class, with its interval and the base's.

    python examples/custom_metric.py

A metric gives numbers for each row, and a value of their sums; loralab makes the
interval of it, paired with the base. To use it from the command line too,
put it into a package with an entry point (examples/plugin).
"""

import numpy as np
from pydantic import Field

import loralab
from loralab.evaluation.scores import Answers, Scores, ratio_of

QUICK = [
    "data.max_rows={train: 192, validation: 32, test: 96}",
    "training.max_steps=6",
]  # leave them out to train on all rows


class RecallParams(loralab.Params):
    """Which class."""

    of: int = Field(0, ge=0, description="index of the class")


@loralab.register("metric", "recall", RecallParams, answers="class", better="higher")
def recall(params: RecallParams, answers: Answers) -> Scores:
    """Return found / all, over the rows of one class, in [0, 1]."""
    mine_E = np.asarray(answers.references) == params.of
    said_E = np.asarray(answers.predictions) == params.of
    return ratio_of((mine_E & said_E).astype(float), mine_E.astype(float))


def main() -> None:
    """Train, measure by the metric, and ask."""
    metrics = "evaluation.metrics=[accuracy, {name: recall, params: {of: 1}}]"
    run = loralab.train(loralab.compose("sms-spam", [metrics, *QUICK]))
    found = run.evaluations()["test"]["metrics"]["recall"]
    for arm, one in found.items():
        bounds = f"[{one['low']:.3f}, {one['high']:.3f}]"
        print(f"recall, {arm}: {one['value']:.3f} {bounds}")
    ask = loralab.InferencePipeline.from_run(run)
    print(ask(["WINNER! You have won a prize. Call 09061234567 to claim"])[0]["label"])


if __name__ == "__main__":
    main()
