"""`InferencePipeline`: answers from an adapter, with the preprocessing of training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loralab.adapters.attach import base_only
from loralab.data.batching import collate, evaluation_order
from loralab.data.examples import generates
from loralab.errors import AdapterError, DataError
from loralab.inference import generate as writing
from loralab.inference.load import Loaded
from loralab.inference.open import open_reference, open_run
from loralab.inference.predict import predict
from loralab.models.forward import pooled
from loralab.runs import Run

CHUNK = 2048
"""Rows that are encoded at a time, so that memory does not grow with their number."""


class InferencePipeline:
    """Answers from a trained adapter; rows come back in the order they were given.

    Attributes:
        task: The task that the adapter was trained on.
    """

    def __init__(self, adapter: Loaded, batch_size: int = 32) -> None:
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
        head: str | None = None,
        **model_changes: str,
    ) -> InferencePipeline:
        """Load the adapter, or the stored model, of a run.

        Args:
            run: A run, or its path, id or name; or a folder that was published, or of
                a merged adapter.
            runs_dir: Where a name is looked for.
            batch_size: Rows at a time.
            head: The task as which a merged adapter answers.
            model_changes: Fields of `ModelConfig` to load with (``dtype="fp32"``).

        Raises:
            RunError: no such run, or no adapter in it.
            AdapterError: the adapter does not fit its base.
        """
        if isinstance(run, Run):
            loaded = open_run(run, **model_changes)
        else:
            loaded = open_reference(str(run), Path(runs_dir), head, **model_changes)
        return cls(loaded, batch_size)

    @property
    def generates(self) -> bool:
        """Whether answers are written token by token."""
        return generates(self.task)

    def without_adapter(self) -> AbstractContextManager[None]:
        """Return a context in which the base answers.

        Raises:
            AdapterError: a stored or baked model, which has its adapter in its weights.
        """
        if not hasattr(self._adapter.model, "disable_adapter"):
            raise AdapterError(
                "the adapter is in this model's weights, so its base cannot answer",
                where=self._adapter.base.path,
                fix="ask the run that it was made of",
            )
        context: AbstractContextManager[None] = base_only(self._adapter.model)
        return context

    def rows(self, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        """Return the rows of what a user gives.

        Raises:
            DataError: an input cannot be used; its number is named.
        """
        found = []
        for number, given in enumerate(inputs, 1):
            try:
                found.append(self.task.row_of(given))
            except ValueError as error:
                raise DataError(str(error), where=f"input {number}") from None
        return found

    def __call__(
        self,
        inputs: Sequence[Any],
        *,
        progress: Callable[[int, int], None] | None = None,
        **options: Any,
    ) -> list[Any]:
        """Return the answer to each input.

        Args:
            inputs: What the task takes: texts, pairs of texts, (question, context),
                lists of words, chat messages; or mappings of a row's columns.
            progress: Told of (rows done, rows in all).
            options: Of `generate`, where the task generates.

        Returns:
            A text each, where the task generates; else a mapping: ``label``,
            ``answer``, ``tags`` …, as the task's `show` says.

        Raises:
            DataError: an input cannot be used.
        """
        if self.generates:
            return self.generate(inputs, progress=progress, **options)
        rows = self.rows(inputs)
        task: Any = self.task
        answers: list[Any] = []
        for start in range(0, len(rows), CHUNK):
            chunk = rows[start : start + CHUNK]
            examples = task(chunk, self._adapter.base.processor)

            def show(
                i: int, readings: list[Any], chunk: list[dict[str, Any]] = chunk
            ) -> Any:
                return task.show(chunk[i], readings)

            said = predict(
                self._adapter.model,
                self._adapter.base,
                examples,
                self._batch_size,
                task=task,
                finish=show,
            )
            answers += said.answers or []
            if progress:
                progress(len(answers), len(rows))
        return answers

    def prompt(self, given: Any) -> str:
        """Return the prompt that the model sees: the template of training, rendered.

        Raises:
            DataError: the adapter does not generate, or the input cannot be used.
        """
        return writing.prompts_of(self._adapter, self.rows([given]))[0]

    def generate(
        self,
        prompts: Sequence[Any],
        *,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[str]:
        """Return a response to each prompt.

        Args:
            prompts: User texts, conversations as chat messages, or sources.
            max_new_tokens: Tokens of a response at most.
            temperature: 0 is greedy; above, responses are sampled.
            progress: Told of (prompts done, prompts in all).

        Raises:
            DataError: the adapter does not generate.
        """
        said = writing.generate(
            self._adapter,
            writing.prompts_of(self._adapter, self.rows(prompts)),
            self._batch_size,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            progress=progress,
        )
        return [first for (first,) in said]

    def stream(
        self, prompt: Any, *, max_new_tokens: int = 128, temperature: float = 0.0
    ) -> Iterator[str]:
        """Yield the pieces of one response as they are written."""
        return writing.stream(
            self._adapter,
            self.prompt(prompt),
            max_new_tokens=max_new_tokens,
            temperature=temperature,
        )

    def embed(self, texts: Sequence[Any]) -> NDArray[np.float32]:
        """Return the mean-pooled features of texts, each of length 1, [texts, hidden].

        Raises:
            DataError: the adapter's task is not `feature-extraction`.
        """
        import torch

        base = self._adapter.base
        if base.head != "feature-extraction":
            raise DataError(
                "only an adapter of the task feature-extraction gives embeddings",
                fix="train one with task.name=feature-extraction",
            )
        rows = self.rows(texts)
        found = np.zeros((len(rows), base.facts.hidden), dtype=np.float32)
        for start in range(0, len(rows), CHUNK):
            examples = self.task(rows[start : start + CHUNK], base.processor)
            for batch in evaluation_order(examples.lengths, self._batch_size):
                units = [[i] for i in batch]
                made = collate(examples, units, base.pad_id)
                moved = {k: t.to(base.numerics.device) for k, t in made.items()}
                with torch.inference_mode():
                    h_BD = pooled(self._adapter.model, moved, base.numerics)
                unit_BD = torch.nn.functional.normalize(h_BD, dim=-1)
                found[[start + i for i in batch]] = unit_BD.cpu().numpy()
        return found
