"""`InferencePipeline`: classify and generate, with the preprocessing of training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from threading import Thread
from typing import Any

from loralab.data.batching import collate, evaluation_order
from loralab.data.tasks.causal_lm import CausalLM, Message
from loralab.data.tasks.text_classification import TextClassification
from loralab.errors import DataError
from loralab.inference.load import LoadedAdapter, load_adapter
from loralab.models.forward import supervised_logits
from loralab.runs import Run, find_run


class InferencePipeline:
    """Answers from a trained adapter; rows come back in the order they were given.

    Attributes:
        task: The task that the adapter was trained on.
    """

    def __init__(self, adapter: LoadedAdapter, batch_size: int = 32) -> None:
        self._adapter = adapter
        self._batch_size = batch_size
        self.task = adapter.task

    @classmethod
    def from_run(
        cls,
        run: Run | str | Path,
        *,
        runs_dir: str | Path = "runs",
        batch_size: int = 32,
        **model_changes: str,
    ) -> InferencePipeline:
        """Load the adapter of a run.

        Args:
            run: A run, or its path, id or name.
            runs_dir: Where a name is looked for.
            batch_size: Rows at a time.
            model_changes: Fields of `ModelConfig` to load with (``dtype="fp32"``).

        Raises:
            RunError: no such run, or no adapter in it.
            AdapterError: the adapter does not fit its base.
        """
        found = run if isinstance(run, Run) else find_run(str(run), Path(runs_dir))
        return cls(load_adapter(found, **model_changes), batch_size)

    def without_adapter(self) -> AbstractContextManager[None]:
        """Return a context in which the base answers."""
        context: AbstractContextManager[None] = self._adapter.model.disable_adapter()
        return context

    def __call__(self, inputs: Sequence[Any], **options: Any) -> list[Any]:
        """Classify or generate, whichever the task is."""
        if isinstance(self.task, TextClassification):
            return self.classify(inputs)
        return self.generate(inputs, **options)

    def classify(self, texts: Sequence[str | tuple[str, str]]) -> list[dict[str, Any]]:
        """Return ``label``, ``probability`` and all ``probabilities`` of each text.

        Args:
            texts: Texts, or pairs of texts.

        Raises:
            DataError: the adapter is no classifier, or a text is empty.
        """
        if not isinstance(self.task, TextClassification):
            raise DataError("this adapter generates; use generate()")
        rows = [_text_row(i, text) for i, text in enumerate(texts)]
        if not rows:
            return []
        base = self._adapter.base
        examples = self.task(rows, base.processor)
        answers: dict[int, dict[str, Any]] = {}
        for batch in evaluation_order(examples.lengths, self._batch_size):
            found = collate(examples, [[i] for i in batch], base.processor.pad_token_id)
            for i, answer in zip(batch, self._probabilities(found), strict=True):
                answers[i] = answer
        return [answers[i] for i in range(len(rows))]

    def _probabilities(self, batch: dict[str, Any]) -> Iterator[dict[str, Any]]:
        import torch

        labels = self.task.labels  # type: ignore[attr-defined]
        numerics = self._adapter.base.numerics
        moved = {name: tensor.to(numerics.device) for name, tensor in batch.items()}
        with torch.inference_mode():
            logits_BC, _, _ = supervised_logits(self._adapter.model, moved, numerics)
        for row in logits_BC.softmax(-1).tolist():
            best = max(range(len(row)), key=row.__getitem__)
            yield {
                "label": labels[best],
                "probability": row[best],
                "probabilities": dict(zip(labels, row, strict=True)),
            }

    def prompt(self, text: str | Sequence[Message]) -> str:
        """Return the prompt that the model sees: the template of training, rendered."""
        if not isinstance(self.task, CausalLM):
            raise DataError("this adapter classifies; use classify()")
        processor = self._adapter.base.processor
        if isinstance(text, str) and not processor.chat_template:
            return text
        messages = (
            [{"role": "user", "content": text}] if isinstance(text, str) else text
        )
        return self.task.render(messages, processor)

    def generate(
        self,
        prompts: Sequence[str | Sequence[Message]],
        *,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
    ) -> list[str]:
        """Return a response to each prompt.

        Args:
            prompts: User texts, or conversations as chat messages.
            max_new_tokens: Tokens of a response at most.
            temperature: 0 is greedy; above, responses are sampled.

        Raises:
            DataError: the adapter is no language model.
        """
        rendered = [self.prompt(prompt) for prompt in prompts]
        order = sorted(range(len(rendered)), key=lambda i: -len(rendered[i]))
        answers: dict[int, str] = {}
        for start in range(0, len(order), self._batch_size):
            chunk = order[start : start + self._batch_size]
            inputs = self._encode([rendered[i] for i in chunk])
            out = self._generate(inputs, max_new_tokens, temperature)
            said = out[:, inputs["input_ids"].shape[1] :]
            decode = self._adapter.base.processor.decode
            for i, ids in zip(chunk, said, strict=True):
                answers[i] = decode(ids, skip_special_tokens=True).strip()
        return [answers[i] for i in range(len(rendered))]

    def stream(
        self,
        prompt: str | Sequence[Message],
        *,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
    ) -> Iterator[str]:
        """Yield the pieces of one response as they are generated."""
        from transformers import TextIteratorStreamer

        inputs = self._encode([self.prompt(prompt)])
        streamer = TextIteratorStreamer(
            self._adapter.base.processor, skip_prompt=True, skip_special_tokens=True
        )
        failed: list[BaseException] = []

        def work() -> None:
            try:
                self._generate(inputs, max_new_tokens, temperature, streamer=streamer)
            except BaseException as error:
                failed.append(error)
                streamer.end()

        thread = Thread(target=work, daemon=True)
        thread.start()
        yield from streamer
        thread.join()
        if failed:
            raise failed[0]

    def _encode(self, prompts: list[str]) -> Any:
        base = self._adapter.base
        special = not base.processor.chat_template
        return base.processor(
            prompts,
            return_tensors="pt",
            padding=True,
            padding_side="left",
            add_special_tokens=special,
        ).to(base.numerics.device)

    def _generate(
        self,
        inputs: Any,
        max_new_tokens: int,
        temperature: float,
        **extra: Any,
    ) -> Any:
        import torch

        base = self._adapter.base
        sampling: dict[str, Any] = {"do_sample": temperature > 0}
        if temperature > 0:
            sampling["temperature"] = temperature
        with torch.inference_mode(), base.numerics.autocast():
            return self._adapter.model.generate(
                **inputs,
                max_new_tokens=max_new_tokens,
                use_cache=True,
                pad_token_id=base.processor.pad_token_id,
                eos_token_id=base.processor.eos_token_id,
                **sampling,
                **extra,
            )


def _text_row(number: int, text: str | tuple[str, str]) -> dict[str, Any]:
    first, second = (text, None) if isinstance(text, str) else text
    if not first.strip():
        raise DataError("the text is empty", where=f"input {number + 1}")
    return {"text": first, "text_pair": second}
