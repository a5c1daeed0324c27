"""spool: a message is a JSON file put into `in/`, its answer one in `out/`."""

import hashlib
import json
from pathlib import Path

import anyio
from pydantic import BaseModel, ConfigDict
from watchfiles import awatch

from daemon.channels.protocol import Accept, Capabilities, ChannelContext, Incoming, Outgoing, Receipt
from daemon.core.errors import ChannelError, PermanentDeliveryError, TransientDeliveryError
from schema.errors import ClawbusError, FileBusyError, StorageError
from schema.rows import Address


class SpoolChannel:
    class Settings(BaseModel):
        model_config = ConfigDict(extra="forbid")  # required: a mistyped key must not pass

        folder: Path
        agent: str
        session: str

    def __init__(self, context: ChannelContext) -> None:
        self.name = context.name
        # One key, one file name: what is sent twice is there once.
        self.capabilities = Capabilities(deduplicates=True)
        self.settings = context.settings
        self.inbox = self.settings.folder / "in"
        self.outbox = self.settings.folder / "out"

    async def run(self, accept: Accept, *, task_status) -> None:
        try:
            self.inbox.mkdir(parents=True, exist_ok=True)
            self.outbox.mkdir(exist_ok=True)
        except OSError as error:
            raise ChannelError(f"channel {self.name}: {error}") from error
        await self.take(accept)
        task_status.started()  # not before it can take messages
        async for _ in awatch(self.inbox, rust_timeout=1000, yield_on_timeout=True):
            await self.take(accept)

    async def take(self, accept: Accept) -> None:
        for file in sorted(self.inbox.glob("*.json")):
            try:
                content = json.loads(file.read_bytes())
                await accept(
                    Incoming(
                        agent=self.settings.agent,
                        session=self.settings.session,
                        content=content,
                        message_id=file.stem,  # taken twice after a crash, it is stored once
                        address=Address(self.name, "out"),
                    )
                )
            except (StorageError, FileBusyError):
                return  # not now: the file stays, the next look takes it
            except (ClawbusError, ValueError):
                file.rename(file.with_suffix(".refused"))
            else:
                file.unlink()  # only after accept returned: the row is committed

    async def deliver(self, message: Outgoing) -> Receipt:
        if message.address.platform_id != "out":
            raise PermanentDeliveryError(f"there is no folder {message.address.platform_id!r}.")
        # Ids come out of a container: never a path unchecked.
        name = hashlib.sha256(message.key.encode()).hexdigest()[:32] + ".json"
        answer = {"in_reply_to": message.in_reply_to, "content": json.loads(message.content)}
        try:
            draft = anyio.Path(self.outbox / (name + ".tmp"))
            await draft.write_text(json.dumps(answer))
            await draft.rename(self.outbox / name)
        except OSError as error:
            raise TransientDeliveryError(f"{name} cannot be written: {error}") from error
        return Receipt(name)
