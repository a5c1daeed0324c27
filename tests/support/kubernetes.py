"""Judges manifests by the published schemas of the Kubernetes API, without a network.

kubernetes_schemas.json is the part of them that our manifests reach: the definitions of the API of Kubernetes 1.37, strict
(unknown fields are faults), without their descriptions, as the package kubernetes-validate 1.37.0 carries them (generated from
https://github.com/kubernetes/kubernetes, api/openapi-spec/swagger.json; Apache License 2.0). A library would bring all of
them, 22 MB, and four packages more, for the six keywords that they use.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, cast

_FILE: Final = Path(__file__).with_name("kubernetes_schemas.json")
_GROUPS: Final = {"v1": "core.v1", "apps/v1": "apps.v1", "networking.k8s.io/v1": "networking.v1"}
_KEYWORDS: Final = frozenset(
    ("$ref", "type", "enum", "required", "properties", "additionalProperties", "items", "oneOf", "format")
)
_TYPES: Final[Mapping[str, type | tuple[type, ...]]] = {
    "string": str, "integer": int, "number": (int, float), "boolean": bool, "object": dict, "array": list,
    "null": type(None),
}  # fmt: skip


def faults(manifest: Mapping[str, Any]) -> list[str]:
    """What the API would refuse in one document, each with its path."""
    schemas: dict[str, Any] = json.loads(_FILE.read_text(encoding="utf-8"))
    group = _GROUPS.get(str(manifest.get("apiVersion")))
    name = f"io.k8s.api.{group}.{manifest.get('kind')}"
    if name not in schemas:
        return [f"{manifest.get('apiVersion')} {manifest.get('kind')}: no such schema here"]
    return list(_faults(manifest, schemas[name], str(manifest["kind"]), schemas))


def _faults(value: Any, schema: Mapping[str, Any], where: str, schemas: Mapping[str, Any]) -> Iterator[str]:
    assert schema.keys() <= _KEYWORDS, f"a keyword that is not checked: {schema.keys() - _KEYWORDS}"
    if "$ref" in schema:
        yield from _faults(value, schemas[schema["$ref"].rpartition("/")[2]], where, schemas)
        return
    if "oneOf" in schema:
        if all(list(_faults(value, one, where, schemas)) for one in schema["oneOf"]):
            yield f"{where}: {value!r} fits no form"
        return
    if "type" in schema and not _is_of(value, schema["type"]):
        yield f"{where}: {value!r} is not {schema['type']}"
        return
    if "enum" in schema and value not in schema["enum"]:
        yield f"{where}: {value!r} is none of {schema['enum']}"
    if isinstance(value, dict):
        yield from _object_faults(cast("dict[str, Any]", value), schema, where, schemas)
    elif isinstance(value, list):
        for number, item in enumerate(cast("list[Any]", value)):
            yield from _faults(item, schema.get("items", {}), f"{where}[{number}]", schemas)


def _object_faults(
    value: Mapping[str, Any], schema: Mapping[str, Any], where: str, schemas: Mapping[str, Any]
) -> Iterator[str]:
    known: Mapping[str, Any] = schema.get("properties", {})
    for name in schema.get("required", ()):
        if name not in value:
            yield f"{where}.{name}: is required"
    for name, item in value.items():
        more: Any = schema.get("additionalProperties", {})
        if name in known:
            yield from _faults(item, known[name], f"{where}.{name}", schemas)
        elif more is False:
            yield f"{where}.{name}: there is no such field"
        elif isinstance(more, dict):
            yield from _faults(item, cast("dict[str, Any]", more), f"{where}.{name}", schemas)


def _is_of(value: Any, names: str | list[str]) -> bool:
    wanted = [names] if isinstance(names, str) else names
    if isinstance(value, bool):
        return "boolean" in wanted
    return any(isinstance(value, _TYPES[name]) for name in wanted)
