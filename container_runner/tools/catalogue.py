"""The tools as an agent sees them: a description and a JSON schema of the arguments each. Data only."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from schema.questions import CHANGES


def _tool(description: str, required: tuple[str, ...], **properties: dict[str, Any]) -> Mapping[str, object]:
    schema = {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}
    # Some clients show tools only on demand unless they are marked so.
    return MappingProxyType(
        {"description": description, "inputSchema": schema, "_meta": {"anthropic/alwaysLoad": True}}
    )


def _string(description: str) -> dict[str, Any]:
    return {"type": "string", "description": description}


CATALOGUE: Final[Mapping[str, Mapping[str, object]]] = MappingProxyType(
    {
        "send_message": _tool(
            "Send a message now, while you go on working. It is not your final answer, which you still give at the end.",
            ("text",),
            text=_string("What to say."),
            to=_string("A destination's name from list_destinations. Default: where the message came from."),
            files={
                "type": "array",
                "items": {"type": "string"},
                "description": "Paths of files to send with it, below your HOME folder. Links and hidden files are refused.",
            },
            key=_string("A name of your own. The same key in a later try of this message sends nothing twice."),
        ),
        "edit_message": _tool(
            "Replace the text of a message that send_message sent.",
            ("message", "text"),
            message=_string("The id that send_message gave."),
            text=_string("The new text."),
        ),
        "ask_user": _tool(
            "Ask the person you work for and wait for the answer. Take no answer in time for a no.",
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
            timeout_s={"type": "number", "minimum": 1, "maximum": 604800, "description": "Default: 3600."},
            default=_string("The option's label that counts when nobody answers in time."),
            wait={"type": "boolean", "description": "false: do not wait; the answer comes later as a message."},
            key=_string("A name of your own: the same key in a later try is the same question."),
        ),
        "react": _tool(
            "React to a message with an emoji, in place of a message that only says that you have seen it.",
            ("emoji",),
            emoji=_string("One emoji."),
            message=_string("The id of a message, yours or a person's. Default: the one that you work on."),
            remove={"type": "boolean", "description": "true: take the reaction back."},
        ),
        "request_change": _tool(
            "Ask an admin to change what you run with. It changes nothing by itself: the decision comes later as a message.",
            ("kind", "what", "reason"),
            kind={
                "type": "string",
                "enum": list(CHANGES),
                "description": "; ".join(f"{a}: {b}" for a, b in CHANGES.items()),
            },
            what=_string("Exactly what you need, such as a package's name or a host and port. Never a secret's value."),
            reason=_string("What you need it for."),
        ),
        "list_destinations": _tool(
            "List where you may send messages besides where the message came from.",
            (),
            filter=_string("Only names that contain this."),
        ),
        "read_history": _tool(
            "Read this conversation's messages and your answers, newest first, also what you were not asked to answer.",
            (),
            limit={"type": "integer", "minimum": 1, "maximum": 100, "description": "Default: 20."},
            before={"type": "integer", "description": "Only what is older than this seq."},
        ),
        "schedule": _tool(
            "Have a message sent to yourself in this conversation, once or again and again; you then work on it, and your"
            " answer goes where this message came from. The same key changes the schedule. Give one of at, every_s and cron.",
            ("key", "text"),
            key=_string("A name of your own: letters, digits, '.', '_' and '-'."),
            text=_string("What to do then. You may not remember more than this."),
            at=_string("Once: 2026-12-24T18:00, 18:00, tomorrow 9:00 or in 2h."),
            every_s={"type": "number", "description": "Again and again, so many seconds apart."},
            cron=_string("A cron expression of five fields: 0 9 * * 1-5 is 09:00 on weekdays."),
            timezone=_string("Whose clock is meant, such as Europe/Vienna. Default: the operator's."),
            until=_string("None after this time."),
            count={"type": "integer", "minimum": 1, "description": "None after so many."},
            catch_up={
                "type": "string",
                "enum": ["skip", "latest", "all"],
                "description": "What comes of times that were missed. Default: latest.",
            },
            check=_string(
                "A shell command in your container, run first: only if it prints something are you woken, and read it."
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
