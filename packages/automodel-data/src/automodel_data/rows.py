"""Raw rows of any known chat format, normalised to messages."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from automodel_data.errors import BadRow, DataError

_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "observation": "tool",
    "function": "tool",
    "tool_response": "tool",
    "function_response": "tool",
}
_KNOWN_ROLES = ("system", "developer", "user", "assistant", "tool")
_REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
FORMATS = ("messages", "sharegpt", "alpaca", "prompt_completion", "text", "tokens")
COLUMNS = (
    "messages", "conversations", "conversation", "tools", "system", "instruction", "input", "output", "history",
    "prompt", "completion", "input_ids", "labels",
)  # fmt: skip


@dataclass(frozen=True)
class Conversation:
    """Messages for a chat template, as Hugging Face expects them."""

    messages: list[dict[str, Any]]
    """``{"role", "content", ...}``; tool-call arguments are objects, absent values are absent keys."""
    tools: list[dict[str, Any]] | None = None
    """JSON schemas of the tools on offer."""
    train: list[bool | None] = field(default_factory=list)
    """One entry per message: True or False where the row says so, None where the policy decides."""


def checked_columns(mapping: Mapping[str, str] | None) -> dict[str, str]:
    """A mapping of known columns to the data's own names. Raises: DataError: a key that is no known column."""
    given = {k: v for k, v in dict(mapping or {}).items() if v is not None}
    if unknown := sorted(set(given) - set(COLUMNS)):
        raise DataError(
            f"column_mapping has the keys {unknown}, which no format knows. It maps known columns to yours, such as "
            f"messages: dialog; known are {', '.join(COLUMNS)}."
        )
    return given


def with_known_columns(row: Mapping[str, Any], mapping: Mapping[str, str]) -> Mapping[str, Any]:
    """The row with its own column names replaced by the known ones. Raises: BadRow: a column is missing."""
    if not mapping:
        return row
    if missing := [column for column in mapping.values() if column not in row]:
        raise BadRow(
            f"missing column {', '.join(map(repr, missing))}", hint=f"The row has: {', '.join(sorted(map(str, row)))}."
        )
    others = {k: v for k, v in row.items() if k not in mapping.values() and k not in mapping}
    return others | {known: row[column] for known, column in mapping.items()}


def sniff_format(row: Mapping[str, Any]) -> str:
    """The name of the row's format, one of `FORMATS`.

    Raises: BadRow: no format has these columns.
    """
    if "input_ids" in row:
        return "tokens"
    if "messages" in row:
        return "messages"
    if "conversations" in row or "conversation" in row:
        return "sharegpt"
    if "instruction" in row and "output" in row:
        return "alpaca"
    if "prompt" in row and "completion" in row:
        return "prompt_completion"
    if "text" in row:
        return "text"
    raise BadRow(
        f"no known format has the columns {sorted(map(str, row))}",
        hint="Known: messages; conversations; instruction + output; prompt + completion; text; input_ids. Name your "
        "columns in `column_mapping`, such as messages: dialog.",
    )


def to_conversation(row: Mapping[str, Any], format: str) -> Conversation:
    """Normalise a row of a chat-like format.

    Raises: BadRow: a role, content or tool call that cannot be used, with its JSON pointer.
    """
    builders = {
        "messages": _from_messages,
        "sharegpt": _from_sharegpt,
        "alpaca": _from_alpaca,
        "prompt_completion": _from_prompt_completion,
    }
    if format not in builders:
        raise BadRow(f"rows of format {format!r} hold no conversation", hint=f"Use one of {sorted(builders)}.")
    columns = {
        "messages": ("messages",),
        "alpaca": ("instruction", "output"),
        "prompt_completion": ("prompt", "completion"),
    }
    missing = [column for column in columns.get(format, ()) if column not in row]
    if missing or (format == "sharegpt" and not {"conversations", "conversation"} & set(row)):
        raise BadRow(
            f"missing column {', '.join(missing or ['conversations'])}",
            hint=f"The row has: {', '.join(sorted(map(str, row)))}.",
        )
    return builders[format](row)


def _from_messages(row: Mapping[str, Any]) -> Conversation:
    return _conversation(_parsed(row["messages"], "/messages"), "/messages", tools=row.get("tools"))


def _from_sharegpt(row: Mapping[str, Any]) -> Conversation:
    key = "conversations" if "conversations" in row else "conversation"
    turns = _parsed(row[key], f"/{key}")
    if isinstance(turns, list) and turns and isinstance(turns[0], Mapping) and "role" in turns[0]:
        return _conversation(turns, f"/{key}", tools=row.get("tools"))
    messages = [_sharegpt_turn(turn, f"/{key}/{i}") for i, turn in enumerate(_require_list(turns, f"/{key}"))]
    if row.get("system"):
        messages.insert(0, {"role": "system", "content": row["system"]})
    return _conversation(messages, f"/{key}", tools=row.get("tools"))


def _sharegpt_turn(turn: Any, path: str) -> dict[str, Any]:
    if not isinstance(turn, Mapping) or "from" not in turn or "value" not in turn:
        raise BadRow("a turn needs `from` and `value`", path=path)
    kept = {k: v for k, v in turn.items() if k not in ("from", "value")}
    if turn["from"] == "function_call":
        call = _parsed(turn["value"], f"{path}/value")
        return {**kept, "role": "assistant", "content": "", "tool_calls": call if isinstance(call, list) else [call]}
    return {**kept, "role": turn["from"], "content": turn["value"]}


def _from_alpaca(row: Mapping[str, Any]) -> Conversation:
    parts = [row["instruction"], row.get("input")]
    for name, part in zip(("instruction", "input"), parts):
        if part is not None and not isinstance(part, str):
            raise BadRow(f"{name} is {type(part).__name__}, not text", path=f"/{name}")
    messages = [{"role": "system", "content": row["system"]}] if row.get("system") else []
    for pair in _require_list(row.get("history") or [], "/history"):
        if not isinstance(pair, list) or len(pair) != 2:
            raise BadRow("a history entry is not a pair of texts", path="/history")
        messages += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    messages.append({"role": "user", "content": "\n".join(part for part in parts if part)})
    messages.append({"role": "assistant", "content": row["output"]})
    return _conversation(messages, "", tools=None)


def _from_prompt_completion(row: Mapping[str, Any]) -> Conversation:
    prompt, completion = _parsed_if_messages(row["prompt"]), _parsed_if_messages(row["completion"])
    prompt = [{"role": "user", "content": prompt}] if not isinstance(prompt, list) else prompt
    completion = [{"role": "assistant", "content": completion}] if not isinstance(completion, list) else completion
    # The prompt's own assistant turns are context: only the completion is trained.
    prompt = [{"train": False, **message} if isinstance(message, Mapping) else message for message in prompt]
    return _conversation([*prompt, *completion], "", tools=row.get("tools"))


def _parsed_if_messages(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _conversation(messages: Any, path: str, *, tools: Any) -> Conversation:
    messages = _require_list(messages, path)
    if not messages:
        raise BadRow("the conversation is empty", path=path)
    clean = [_message(message, f"{path}/{i}") for i, message in enumerate(messages)]
    train = [_train_flag(message, f"{path}/{i}") for i, message in enumerate(messages)]
    return Conversation(clean, tools=_tools(tools), train=train)


def _message(message: Any, path: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise BadRow(f"a message is {type(message).__name__}, not an object", path=path)
    role = message.get("role")
    role = _ROLES.get(role, role) if isinstance(role, str) else role
    if role not in _KNOWN_ROLES:
        raise BadRow("unknown role", path=f"{path}/role", hint=f"Got {role!r}; known: {', '.join(_KNOWN_ROLES)}.")
    # Arrow gives every message the union of all keys, with null where a key is absent: drop those again.
    clean = {k: v for k, v in message.items() if v is not None and k not in ("train", "weight")}
    clean["role"] = role
    calls = _tool_calls(clean.pop("tool_calls", None), f"{path}/tool_calls")
    if calls:
        clean["tool_calls"] = calls
    clean["content"] = _content(clean.get("content"), path=f"{path}/content", may_be_absent=bool(calls))
    for key in _REASONING_KEYS:
        if key in clean and not isinstance(clean[key], str):
            raise BadRow(f"{key} is {type(clean[key]).__name__}, not text", path=f"{path}/{key}")
    return clean


def _content(content: Any, *, path: str, may_be_absent: bool) -> str:
    if content is None:
        if may_be_absent:
            return ""
        raise BadRow("content is null", path=path)
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(part, Mapping) for part in content):
        kinds = {str(part.get("type", "text")) for part in content}
        if kinds <= {"text"} and all(isinstance(part.get("text"), str) for part in content):
            return "".join(part["text"] for part in content)
        raise BadRow(
            f"content parts {sorted(map(str, kinds))} are not all text",
            path=path,
            hint="Media needs a vision-language dataset.",
        )
    raise BadRow(f"content is {type(content).__name__}, not text", path=path)


def _tool_calls(calls: Any, path: str) -> list[dict[str, Any]]:
    if not calls:
        return []
    return [_tool_call(call, f"{path}/{i}") for i, call in enumerate(_require_list(_parsed(calls, path), path))]


def _tool_call(call: Any, path: str) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise BadRow("a tool call needs a function name", path=path)
    arguments = _parsed(function.get("arguments", {}), f"{path}/function/arguments")
    if not isinstance(arguments, Mapping):
        raise BadRow(
            f"tool-call arguments are {type(arguments).__name__}, not an object", path=f"{path}/function/arguments"
        )
    kept = {k: v for k, v in call.items() if v is not None and k not in ("function", "name", "arguments")}
    return {"type": "function", **kept, "function": {"name": function["name"], "arguments": dict(arguments)}}


def _tools(tools: Any) -> list[dict[str, Any]] | None:
    parsed = _parsed(tools, "/tools") if tools else None
    if not parsed:
        return None
    parsed = [_parsed(tool, f"/tools/{i}") for i, tool in enumerate(_require_list(parsed, "/tools"))]
    if not all(isinstance(tool, Mapping) for tool in parsed):
        raise BadRow("a tool is not an object", path="/tools")
    return [dict(tool) for tool in parsed]


def _train_flag(message: Mapping[str, Any], path: str) -> bool | None:
    flag = message["train"] if message.get("train") is not None else message.get("weight")
    if flag is None or isinstance(flag, bool):
        return flag
    if isinstance(flag, int | float) and flag in (0, 1):
        return bool(flag)
    key = "train" if message.get("train") is not None else "weight"
    raise BadRow(
        "a message's train flag must be true, false, 0 or 1",
        path=f"{path}/{key}",
        hint=f"Got {flag!r}. A token is trained or not: a loss is a mean over trained tokens, without shares of them. "
        "To train on a source less, give it a smaller weight in a mixture.",
    )


def _parsed(value: Any, path: str) -> Any:
    """``value``, decoded when it is JSON text: nested columns kept as text survive Arrow unchanged."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise BadRow("not valid JSON text", path=path) from None


def _require_list(value: Any, path: str) -> list[Any]:
    if not isinstance(value, list):
        raise BadRow(f"{type(value).__name__} instead of a list", path=path)
    return value
