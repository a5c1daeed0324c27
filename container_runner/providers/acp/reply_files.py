"""The files of an agent's answer: images, audio and resources with bytes, and links to files in its HOME. Pure.

The blocks are those of agentclientprotocol.com/protocol/content. What does not fit stays a note in the text.
"""

from __future__ import annotations

import base64
import mimetypes
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, cast
from urllib.parse import unquote, urlsplit

from container_runner.shared.reply import OutFile
from schema.plain_names import clean_name, looks

_TYPES: Final = mimetypes.MimeTypes(filenames=())  # the table built into Python: the same answer on every machine
_MAX_LINKS: Final = 1000


@dataclass(slots=True)
class ReplyFiles:
    """What one answer has brought so far. `home` is the agent's HOME; the limits are those of one message."""

    home: Path
    max_files: int
    max_bytes: int
    links: list[str] = field(default_factory=list[str])  # paths below HOME, to be read at the end of the turn
    embedded: list[OutFile] = field(default_factory=list[OutFile])

    def take(self, content: Mapping[str, object]) -> bool:
        """Take a content block that is a file of this answer. Return False for every other one."""
        match content.get("type"):
            case "image" | "audio" as kind:
                return self._embed(str(kind), content.get("data"), content.get("mimeType"))
            case "resource":
                held = content.get("resource")
                resource = cast("dict[str, object]", held) if isinstance(held, dict) else dict[str, object]()
                name = _path_of(resource.get("uri")).rpartition("/")[2]
                return self._embed(name or "file", resource.get("blob"), resource.get("mimeType"))
            case "resource_link":
                return self._link(content.get("uri"))
            case _:
                return False

    def _embed(self, name: str, data: object, media_type: object) -> bool:
        room = self.max_bytes - sum(len(one.data) for one in self.embedded)
        # Base64 takes four characters for three bytes: decode nothing that cannot fit.
        if not isinstance(data, str) or len(self.embedded) >= self.max_files or len(data) > room * 4 // 3 + 4:
            return False
        try:
            found = base64.b64decode(data, validate=True)
        except ValueError:
            return False
        if len(found) > room:
            return False
        ending = _TYPES.guess_extension(media_type) if isinstance(media_type, str) and "." not in name else None
        taken = {looks(one.name) for one in self.embedded}
        self.embedded.append(OutFile(clean_name(name + (ending or ""), taken), found))
        return True

    def _link(self, uri: object) -> bool:
        path = _path_of(uri) if isinstance(uri, str) and uri.startswith("file://") else ""
        if not path.startswith(f"{self.home}/") or len(self.links) >= _MAX_LINKS:
            return False
        if path not in self.links:
            self.links.append(path)
        return True


def _path_of(uri: object) -> str:
    """Return the decoded path of a file URI, or an empty text for anything else."""
    try:
        return unquote(urlsplit(uri).path, errors="replace") if isinstance(uri, str) else ""
    except ValueError:
        return ""
