"""The tools as an agent sees them: for each, a description and a JSON schema of its arguments. Data only."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from schema.questions import CHANGES


def _tool(description: str, required: tuple[str, ...], **properties: dict[str, Any]) -> Mapping[str, object]:
    schema = {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}
    # Some clients hide a tool until they search for it, unless it is marked as always loaded.
    return MappingProxyType(
        {"description": description, "inputSchema": schema, "_meta": {"anthropic/alwaysLoad": True}}
    )


def _string(description: str) -> dict[str, Any]:
    return {"type": "string", "description": description}


CATALOGUE: Final[Mapping[str, Mapping[str, object]]] = MappingProxyType(
    {
        "send_message": _tool(
            "Send a message now, while you keep working. It does not replace your final answer, which you give at the end.",
            ("text",),
            text=_string("What to say."),
            to=_string("A destination's name from list_destinations. Default: where the message came from."),
            files={
                "type": "array",
                "items": {"type": "string"},
                "description": "Paths of files to send with it, below your HOME folder. Links and hidden files are refused.",
            },
            key=_string("A name that you choose. If this message is tried again, the same key sends nothing twice."),
        ),
        "edit_message": _tool(
            "Replace the text of a message that send_message sent.",
            ("message", "text"),
            message=_string("The id that send_message returned."),
            text=_string("The new text."),
        ),
        "ask_user": _tool(
            "Ask the person you work for and wait for the answer. If nobody answers in time, treat it as a no.",
            ("question",),
            question=_string("What to ask."),
            options={
                "type": "array",
                "maxItems": 20,
                "description": "The choices, if there are any.",
                "items": {
                    "type": "object",
                    "properties": {"label": {"type": "string"}, "description": {"type": "string"}},
                    "required": ["label"],
                },
            },
            free_text={"type": "boolean", "description": "Whether any text may be the answer. Default: true."},
            timeout_s={"type": "number", "minimum": 1, "maximum": 604800, "description": "Seconds. Default: 3600."},
            default=_string("The label of the option to assume when nobody answers in time."),
            wait={"type": "boolean", "description": "false: do not wait; the answer comes later as a message."},
            key=_string("A name that you choose. If this message is tried again, the same key is the same question."),
        ),
        "react": _tool(
            "React to a message with an emoji, instead of sending a message that only says that you have seen it.",
            ("emoji",),
            emoji=_string("One emoji."),
            message=_string("The id of a message, yours or a person's. Default: the message that you are working on."),
            remove={"type": "boolean", "description": "true: take the reaction back."},
        ),
        "request_change": _tool(
            "Ask an admin to change your environment. Nothing changes until an admin decides; the decision comes as a message.",
            ("kind", "what", "reason"),
            kind={
                "type": "string",
                "enum": list(CHANGES),
                "description": "; ".join(f"{a}: {b}" for a, b in CHANGES.items()),
            },
            what=_string("Exactly what you need, such as a package's name or a host and port. Never include a secret."),
            reason=_string("What you need it for."),
        ),
        "list_destinations": _tool(
            "List the destinations that you may send messages to, besides the place that the message came from.",
            (),
            filter=_string("Only names that contain this."),
        ),
        "read_history": _tool(
            "Read this conversation, newest first: your answers and all messages, even those you were not asked to answer.",
            (),
            limit={"type": "integer", "minimum": 1, "maximum": 100, "description": "Default: 20."},
            before={"type": "integer", "description": "Only entries older than the one with this seq."},
        ),
        "schedule": _tool(
            "Have a message sent to yourself in this conversation, once or repeatedly; you then work on it, and your answer"
            " goes where this message came from. The same key changes the schedule. Give exactly one of at, every_s and cron.",
            ("key", "text"),
            key=_string("A name that you choose: letters, digits, '.', '_' and '-'."),
            text=_string("What to do then. Write down everything you need: you may not remember more than this."),
            at=_string("Once: 2026-12-24T18:00, 18:00, tomorrow 9:00 or in 2h."),
            every_s={"type": "number", "description": "Repeat at this interval, in seconds."},
            cron=_string("Repeat by a cron expression of five fields: 0 9 * * 1-5 is 09:00 on weekdays."),
            timezone=_string("The time zone of at, cron and until, such as Europe/Vienna. Default: the operator's."),
            until=_string("Send nothing after this time."),
            count={"type": "integer", "minimum": 1, "description": "Stop after this number of messages."},
            catch_up={
                "type": "string",
                "enum": ["skip", "latest", "all"],
                "description": "Which of the missed times to make up for. Default: latest.",
            },
            check=_string(
                "A shell command, run first in your container. If it prints nothing, you are not woken; if it prints"
                " something, you get that with the message."
            ),
        ),
        "list_schedules": _tool("List the schedules that you have made in this conversation.", ()),
        "change_schedule": _tool(
            "Pause, resume or cancel one of your schedules, or have its message sent now.",
            ("key", "action"),
            key=_string("The schedule's key."),
            action={"type": "string", "enum": ["pause", "resume", "cancel", "run_now"]},
        ),
    }
)
