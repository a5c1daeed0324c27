"""A route's secret as a header. It is read from its file at each use and never kept."""

from __future__ import annotations

from daemon.config.secret_files import read_secret_file
from daemon.egress.refusals import SecretUnavailableError
from daemon.egress.rules import Secret


def secret_header(secret: Secret) -> tuple[bytes, bytes]:
    """Return the header with the secret in it. Blocks. Raise SecretUnavailableError."""
    try:
        text = read_secret_file(secret.file)
    except ValueError as error:
        raise SecretUnavailableError(str(error)) from error
    return secret.header, secret.value.replace("{secret}", text).encode("ascii")
