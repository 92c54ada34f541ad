r"""Causal language modelling: instruction rows, chat messages, or plain text.

Only responses are supervised, by prefix rendering. The chat template renders the
conversation up to a response (with the generation prompt), and up to its end; the
difference is the response, and its characters tell which tokens have a label::

    <|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n Hello.<|im_end|> \n
    ────────────────── prefix, not supervised ────────────── ── supervised ── ─

This needs no ``{% generation %}`` in the template, masks by place and never by token id
(so `pad = eos` masks nothing), and keeps the end token, so the model learns to stop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from loralab.data.examples import IGNORE, Examples
from loralab.data.tasks._columns import column_of
from loralab.errors import DataError, ModelError
from loralab.registry import Params, register

ALPACA = (
    "{% for m in messages %}{% if m['role'] == 'user' %}### Instruction:\n"
    "{{ m['content'] }}\n\n{% elif m['role'] == 'assistant' %}### Response:\n"
    "{{ m['content'] }}{{ eos_token }}\n\n{% else %}{{ m['content'] }}\n\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}### Response:\n{% endif %}"
)
"""The prompt of Stanford Alpaca, for base models without a template of their own."""

Message = dict[str, str]
Shape = Literal["auto", "chat", "alpaca", "dolly", "text"]
NEEDED: dict[str, set[str]] = {
    "chat": {"messages"},
    "alpaca": {"instruction", "output"},
    "dolly": {"instruction", "response"},
    "text": {"text"},
}


class CausalLMParams(Params):
    """How instruction rows become tokens."""

    max_length: int = Field(512, gt=1, description="tokens of a row, and of a pack")
    shape: Shape = Field("auto", description="auto: the first that a row's columns fit")
    chat_template: str | None = Field(
        None, description="null: the model's; `alpaca`; or the path of a .jinja file"
    )
    packing: bool = Field(True, description="fill packs with rows, kept apart")
    keep: list[str] = Field(
        default_factory=list,
        description="further columns that a metric needs, such as `test`",
    )


def _said(value: Any, name: str, empty: bool = False) -> str:
    if value is None and empty:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{name} is {type(value).__name__}, not text")
    if not value.strip() and not empty:
        raise ValueError(f"{name} is empty")
    return value


def _messages(value: Any) -> list[Message]:
    if not isinstance(value, list) or not value:
        raise ValueError("messages is not a list of {role, content}")
    found = []
    for i, message in enumerate(value):
        if not isinstance(message, dict) or not {"role", "content"} <= set(message):
            raise ValueError(f"messages[{i}] is not {{role, content}}")
        if message["role"] not in ("system", "user", "assistant"):
            raise ValueError(f"messages[{i}].role is {message['role']!r}")
        content = _said(message["content"], f"messages[{i}].content")
        found.append({"role": message["role"], "content": content})
    return found


def _joined(messages: Sequence[Message]) -> str:
    return "\x1f".join(f"{m['role']}\x1e{m['content']}" for m in messages)


def _asked(columns: Mapping[str, Any], extra: str) -> Message:
    """Return the user's message of an instruction row."""
    asked = _said(columns["instruction"], "instruction")
    context = _said(columns.get(extra), extra, empty=True).strip()
    return {"role": "user", "content": f"{asked}\n\n{context}" if context else asked}


def _instruction(columns: Mapping[str, Any], extra: str, answer: str) -> list[Message]:
    said = _said(columns[answer], answer)
    return [_asked(columns, extra), {"role": "assistant", "content": said}]


@register("task", "causal-lm", CausalLMParams)
class CausalLM:
    """Rows become chat messages (or one plain text); responses are supervised."""

    head = "causal-lm"
    form = "text"
    metrics = ()

    def __init__(self, params: CausalLMParams) -> None:
        self.params = params

    def parse(self, columns: Mapping[str, Any]) -> dict[str, Any]:
        """Return ``messages`` or ``text`` of a row, the other one None; and `keep`."""
        kept = {name: column_of(columns, name) for name in self.params.keep}
        return {**kept, **self._content(columns)}

    def _content(self, columns: Mapping[str, Any]) -> dict[str, Any]:
        shape = self.params.shape
        fits = [s for s, need in NEEDED.items() if need <= set(columns)]
        if shape != "auto":
            missing = NEEDED[shape] - set(columns)
            if missing:
                raise ValueError(f"shape {shape} needs the columns {sorted(missing)}")
        elif not fits:
            needs = "; ".join(f"{s}: {sorted(n)}" for s, n in NEEDED.items())
            raise ValueError(f"the columns {sorted(columns)} fit no shape ({needs})")
        chosen = fits[0] if shape == "auto" else shape
        if chosen == "text":
            return {"messages": None, "text": _said(columns["text"], "text")}
        if chosen == "chat":
            messages = _messages(columns["messages"])
        elif chosen == "alpaca":
            messages = _instruction(columns, "input", "output")
        else:
            messages = _instruction(columns, "context", "response")
        if messages[-1]["role"] != "assistant":
            raise ValueError("the last message is not the assistant's")
        return {"messages": messages, "text": None}

    def input_of(self, row: Mapping[str, Any]) -> str:
        """Return everything before the last response; a plain text whole."""
        if row["text"] is not None:
            return str(row["text"])
        return _joined(row["messages"][:-1])

    def earlier_inputs(self, row: Mapping[str, Any]) -> list[str]:
        """Return what each response but the last answers: they are supervised too."""
        said = (row["messages"] or [])[:-1]
        turns = [i for i, m in enumerate(said) if m["role"] == "assistant"]
        return [_joined(said[:i]) for i in turns]

    def fit(self, splits: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
        """Nothing is learnt from rows."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Nothing to take over."""

    def prepare(self, processor: Any) -> None:
        """Give the tokenizer its template, or say what is missing."""
        if processor.eos_token_id is None:
            raise ModelError("the tokenizer has no end token: answers would never end")
        wanted = self.params.chat_template
        if wanted == "alpaca":
            processor.chat_template = ALPACA
        elif wanted is not None:
            path = Path(wanted).expanduser()
            if not path.is_file():
                raise DataError(
                    f"no template {wanted!r}",
                    where="task.params.chat_template",
                    fix="write null, alpaca, or the path of a .jinja file",
                )
            processor.chat_template = path.read_text(encoding="utf-8")

    def row_of(self, given: Any) -> dict[str, Any]:
        """Return the row of a user's text, of chat messages, or of a row's columns."""
        if isinstance(given, Mapping) and "instruction" in given:
            asked = [_asked(given, "input" if "input" in given else "context")]
        elif isinstance(given, str):
            asked = [{"role": "user", "content": _said(given, "the prompt")}]
        elif isinstance(given, Mapping):
            asked = _messages(given.get("messages"))
        else:
            asked = _messages(given)
        answer = {"role": "assistant", "content": ""}
        return {"messages": [*asked, answer], "text": None}

    def reference(self, row: Mapping[str, Any]) -> list[str]:
        """Return the last response, as the one acceptable text.

        Raises:
            DataError: a plain text has none.
        """
        if row["text"] is not None:
            raise DataError(
                "a plain text has no response to compare an answer with",
                where=str(row.get("origin", "a row")),
                fix="leave evaluation.metrics empty: cross-entropy is measured",
            )
        return [row["messages"][-1]["content"]]

    def prompt(self, row: Mapping[str, Any], processor: Any) -> str:
        """Return everything before the last response, with its beginning."""
        if row["text"] is not None:
            return str(row["text"])
        asked = row["messages"][:-1]
        if not processor.chat_template and len(asked) == 1:
            return str(asked[0]["content"])  # trained on plain texts
        return _render(processor, asked, True)

    def __call__(self, rows: Sequence[Mapping[str, Any]], processor: Any) -> Examples:
        """Return token ids, and labels on responses only.

        Conversations longer than ``max_length`` are left out and counted (a cut one
        would teach the model not to stop); plain texts are cut into windows.

        Raises:
            DataError: a row with no supervised token, or none unsupervised.
            ModelError: the tokenizer has no chat template and a row needs one.
        """
        limit = self.params.max_length
        found = Examples(
            [], [], [], "next-token", limit if self.params.packing else None
        )
        too_long = 0
        for i, row in enumerate(rows):
            if row["text"] is not None:
                ids = [*processor(row["text"])["input_ids"], processor.eos_token_id]
                parts = [ids[k : k + limit] for k in range(0, len(ids), limit)]
                pairs = [(part, list(part)) for part in parts if len(part) > 1]
            else:
                pairs = [encode_messages(row["messages"], processor, row)]
                if len(pairs[0][0]) > limit:
                    too_long += 1
                    continue
            for ids, labels in pairs:
                found.input_ids.append(ids)
                found.labels.append(labels)
                found.row.append(i)
        if rows and not found.input_ids:
            raise DataError(
                f"every one of {len(rows)} rows is longer than {limit} tokens",
                where="task.params.max_length",
                fix="raise it",
            )
        found.notes["longer_than_max_length_left_out"] = too_long
        return found


def _render(processor: Any, messages: Sequence[Message], ask: bool) -> str:
    if not processor.chat_template:
        raise ModelError(
            "the tokenizer has no chat template, and the rows are conversations",
            fix="set task.params.chat_template=alpaca, or the path of a .jinja file",
        )
    return str(
        processor.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=ask
        )
    )


def encode_messages(
    messages: Sequence[Message],
    processor: Any,
    row: Mapping[str, Any],
) -> tuple[list[int], list[int]]:
    """Return token ids and labels (`IGNORE` outside responses) of a conversation.

    Args:
        messages: At least one of them the assistant's.
        processor: A fast tokenizer with a chat template.
        row: For messages of errors (``origin``).
    """
    where = str(row.get("origin", "a row"))
    full = _render(processor, messages, False)
    encoded = processor(full, add_special_tokens=False, return_offsets_mapping=True)
    ids: list[int] = encoded["input_ids"]
    labels = [IGNORE] * len(ids)
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        begin, stop = _span(messages, i, full, processor, where)
        inside = [
            t
            for t, (start, end) in enumerate(encoded["offset_mapping"])
            if begin <= start < end <= stop
        ]
        ends = [t for t in inside if ids[t] == processor.eos_token_id]
        if not ends:
            raise ModelError(
                f"the response does not end in {processor.eos_token!r}",
                where=where,
                why="a model trained on it would not stop",
                fix="name a chat template that ends responses with the end token",
            )
        for t in inside:
            if t <= ends[-1]:
                labels[t] = ids[t]
    _check_mask(labels, where)
    return ids, labels


def _span(
    messages: Sequence[Message], i: int, full: str, processor: Any, where: str
) -> tuple[int, int]:
    """Return where response `i` begins and ends in the rendered conversation."""
    prefix = _render(processor, messages[:i], True)
    through = _render(processor, messages[: i + 1], False)
    if full.startswith(prefix) and full.startswith(through):
        return len(prefix), len(through)
    raise ModelError(
        "the chat template renders a conversation's beginning differently once more "
        f"is said (response {i})",
        where=where,
        why="what is supervised cannot be told",
        fix="split the conversation into single turns, or name a template",
    )


def _check_mask(labels: Sequence[int], where: str) -> None:
    masked = sum(label == IGNORE for label in labels)
    if masked in (0, len(labels)):
        what = "every token is supervised" if masked == 0 else "no token is supervised"
        raise DataError(what, where=where, fix="look at it with `loralab data show`")
