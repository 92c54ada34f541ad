"""Is a short message spam? From a configuration to answers, on MiniLM.

    python examples/text_classification.py

A preset and some changes make a configuration; `train` writes a run directory, with the
adapter and its evaluation beside the base's. Run it again: the same configuration finds
its run. Your own rows take a YAML file of six lines (see README).
"""

import loralab

QUICK = [
    "data.max_rows={train: 192, validation: 32, test: 96}",
    "training.max_steps=6",
]  # leave them out to train on all rows, in three epochs
MESSAGES = [
    "WINNER! You have won a prize. Call 09061234567 to claim",
    "Running late, see you at lunch",
]


def main() -> None:
    """Train, show what was measured, and ask."""
    config = loralab.compose("sms-spam", ["peft.params.rank=4", *QUICK])
    run = loralab.train(config)
    measured = run.evaluations()["test"]["metrics"]["accuracy"]
    for arm in ("base", "adapter", "difference"):
        found = measured[arm]
        bounds = f"[{found['low']:.3f}, {found['high']:.3f}]"
        print(f"accuracy {arm:10} {found['value']:.3f} {bounds}")
    ask = loralab.InferencePipeline.from_run(run)
    for text, answer in zip(MESSAGES, ask(MESSAGES), strict=True):
        print(f"{answer['label']:5} {text}")


if __name__ == "__main__":
    main()
