"""A language model learns to chat: instruction tuning of SmolLM2 on dialogue turns.

    python examples/text_generation.py

Only responses are supervised, and the prompt of inference is the template of training.
The base answers beside the adapter, so that one sees what training changed.
"""

import loralab

QUICK = [
    "data.max_rows={train: 24, validation: 4, test: 8}",
    "training.per_device_train_batch_size=2",
    "training.max_steps=3",
]  # leave them out to train on all rows
PROMPTS = ["What is your favorite book?", "My printer is not working."]


def main() -> None:
    """Train, show what the model sees, and let base and adapter answer."""
    config = loralab.compose("chatterbot", ["peft.params.target_modules=qv", *QUICK])
    run = loralab.train(config)
    loss = run.evaluations()["test"]["metrics"]["cross_entropy"]
    for arm in ("base", "adapter"):
        print(f"cross-entropy of the {arm}: {loss[arm]['value']:.3f} nats a token")
    ask = loralab.InferencePipeline.from_run(run)
    print(ask.prompt(PROMPTS[0]))
    with ask.without_adapter():
        before = ask(PROMPTS, max_new_tokens=12)
    after = ask(PROMPTS, max_new_tokens=12)
    for prompt, base, adapter in zip(PROMPTS, before, after, strict=True):
        print(f"{prompt}\n  base:    {base}\n  adapter: {adapter}")


if __name__ == "__main__":
    main()
