"""Clothes by their pictures: a small vision transformer on Fashion-MNIST.

    python examples/image_classification.py

For your own pictures, one folder a class: compose("image-classification",
["data.source.params.path=FOLDER"]). One asks with a path, bytes or pixels.
"""

import loralab

QUICK = [
    "data.max_rows={train: 128, validation: 16, test: 48}",
    "training.max_steps=4",
]  # leave them out to train on 4,000 images


def main() -> None:
    """Train, show the metrics, and classify images of the test split."""
    config = loralab.compose("vit-fashion-mnist", QUICK)
    run = loralab.train(config)
    metrics = run.evaluations()["test"]["metrics"]
    for name, arms in metrics.items():
        base, adapter = (arms[arm]["value"] for arm in ("base", "adapter"))
        print(f"{name}: base {base:.3f}, adapter {adapter:.3f}")
    rows = loralab.load_rows(config.data, loralab.get_preprocessor(config.task))
    images = rows.splits["test"].select(range(4))
    ask = loralab.InferencePipeline.from_run(run)
    for answer in ask(images["image"]):
        print(f"{answer['label']} ({answer['probability']:.2f})")


if __name__ == "__main__":
    main()
