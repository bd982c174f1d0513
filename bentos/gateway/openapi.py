"""The API as a document, with each loaded model's own inputs, and the page that shows it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from airlock.core.bundle import Manifest
from airlock.core.spec import Input, Task
from airlock.core.tally import GatewayStatus
from gateway.serving import Served
from gateway.stand_ins import Means

_REFERENCE = "#/components/schemas/{model}"
_TYPES = {"float": "number", "int": "integer", "string": "string"}
_REFUSALS = {
    "400": "The body is not JSON; the answer names the offset",
    "404": "There is no such model; the answer names those there are",
    "413": "Too many bytes or rows; the answer names the limit",
    "415": "The body is not application/json",
    "422": "A row does not fit; the answer names row, field, what was expected and what was sent",
    "424": "The online store has no value for an input that needs one",
    "503": "No version could answer, or the online store does not",
}

PAGE = b"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>Airlock gateway</title>
<link rel="stylesheet" href="/static_content/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="/static_content/swagger-ui-bundle.js"></script>
<script>
SwaggerUIBundle({url: "/openapi.json", dom_id: "#swagger-ui", validatorUrl: null, defaultModelsExpandDepth: 0});
</script>
</body>
</html>
"""
"""Swagger UI from BentoML's package. BentoML's own page would load a tracker from the network."""


def document(models: Mapping[str, Served]) -> dict[str, Any]:
    """The OpenAPI 3.1 document."""
    paths: dict[str, Any] = {}
    schemas: dict[str, Any] = {"Error": _ERROR, **_status_schemas()}
    for name, served in sorted(models.items()):
        manifest = served.effect.champion.manifest
        paths[f"/v1/models/{name}/predict"] = {"post": _predict(name, manifest)}
        paths[f"/v1/models/{name}/status"] = {
            "get": _operation(name, f"{name}_status", "Route, shares and counts", _ref("GatewayStatus"))
        }
        schemas |= _model_schemas(name, manifest)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Airlock gateway",
            "version": "1",
            "description": "Predictions of the models that are released here. A request's `key` chooses the version.",
        },
        "paths": paths | _PLAIN_PATHS,
        "components": {"schemas": schemas},
    }


def _predict(name: str, manifest: Manifest) -> dict[str, Any]:
    operation = _operation(name, f"{name}_predict", f"Ask {name}", _ref(f"{name}.Answer"))
    operation["parameters"] = [
        {
            "name": "X-Request-ID",
            "in": "header",
            "schema": {"type": "string", "maxLength": 256},
            "description": "Comes back as request_id, and chooses the version where there is no key",
        }
    ]
    example = {"rows": [manifest.plain_row()]}
    operation["requestBody"] = {
        "required": True,
        "content": {"application/json": {"schema": _ref(f"{name}.Question"), "example": example}},
    }
    refusal = {"content": {"application/json": {"schema": _ref("Error")}}}
    operation["responses"] |= {status: {"description": text} | refusal for status, text in _REFUSALS.items()}
    return operation


def _model_schemas(name: str, manifest: Manifest) -> dict[str, Any]:
    own: dict[str, Any] = {}
    if manifest.key:
        own[manifest.key] = {"type": ["string", "integer", "null"], "description": "Kept in the prediction log"}
    if manifest.event_time:
        text = "When the question is asked of; features are read as of then, if there are entities"
        own[manifest.event_time] = {"type": ["string", "null"], "format": "date-time", "description": text}
    rows = {"Row": _object({n: _input(i) for n, i in manifest.inputs.items()}, own)}
    ways = [{"required": ["rows"]}]
    lists = {"rows": _ref(f"{name}.Row")}
    if manifest.features is not None:
        features = manifest.features
        keys = {n: manifest.inputs.get(n, Input(type="string", nullable=True)) for n in features.entities}
        rows["Entity"] = _object({n: _input(i) for n, i in (keys | features.request).items()}, own)
        ways.append({"required": ["entities"]})
        lists["entities"] = _ref(f"{name}.Entity")
    limit = manifest.serving.max_rows
    question = {
        "type": "object",
        "additionalProperties": False,
        "oneOf": ways,
        "properties": {
            **{n: {"type": "array", "minItems": 1, "maxItems": limit, "items": item} for n, item in lists.items()},
            "key": {"type": "string", "minLength": 1, "maxLength": 256, "description": "Chooses the version"},
            "attributes": _ATTRIBUTES,
        },
    }
    classified = {
        "prediction": {"enum": [0, 1], "description": f"1: {manifest.label.positive}"},
        "probability": {"type": "number", "minimum": 0, "maximum": 1, "description": f"of {manifest.label.positive}"},
    }
    valued = {"prediction": {"type": "number", "description": manifest.label.name}}
    rows["Prediction"] = _object(classified if manifest.task is Task.CLASSIFICATION else valued, {})
    answer = {
        "model": {"const": name},
        "version": {"type": ["string", "null"], "description": "null: no version answered, but a rule or the default"},
        "variant": {
            "enum": ["champion", "candidate", "pinned", None],
            "description": "What the version is in the route; pinned: neither, a pin names it; null: as with version",
        },
        "request_id": {"type": "string"},
        "fallback": {
            "enum": [None, *get_args(Means)],
            "description": "What stood in for a version that could not answer: the champion, the champion's cached "
            "answer to the same inputs, a rule, or the default; null: nothing had to",
        },
        "predictions": {"type": "array", "items": _ref(f"{name}.Prediction")},
    }
    rows |= {"Question": question, "Answer": _object(answer, {})}
    return {f"{name}.{part}": schema for part, schema in rows.items()}


def _input(declared: Input) -> dict[str, Any]:
    kind = _TYPES[declared.type]
    schema: dict[str, Any] = {"type": [kind, "null"] if declared.nullable else kind}
    if declared.min is not None:
        schema["minimum"] = declared.min
    if declared.max is not None:
        schema["maximum"] = declared.max
    if declared.values is not None:
        schema["enum"] = [*declared.values, *([None] if declared.nullable else [])]
    elif kind == "string" and not declared.nullable:
        schema["minLength"] = 1
    return schema


def _object(required: Mapping[str, Any], optional: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": list(required),
        "properties": {**required, **optional},
    }


def _operation(tag: str, name: str, summary: str, answer: dict[str, Any]) -> dict[str, Any]:
    content = {"application/json": {"schema": answer}}
    return {
        "tags": [tag],
        "operationId": name,
        "summary": summary,
        "responses": {"200": {"description": "OK", "content": content}},
    }


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": _REFERENCE.format(model=name)}


def _status_schemas() -> dict[str, Any]:
    schema = GatewayStatus.model_json_schema(ref_template=_REFERENCE, mode="serialization")
    return {**schema.pop("$defs", {}), "GatewayStatus": schema}


_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["code", "message"],
            "properties": {
                "code": {"type": "string"},
                "message": {"type": "string"},
                "row": {"type": ["integer", "null"]},
                "field": {"type": ["string", "null"]},
                "expected": {"type": ["string", "null"]},
                "got": {},
            },
        }
    },
}
_ATTRIBUTES = {
    "type": ["object", "null"],
    "additionalProperties": {"type": ["string", "number", "boolean"]},
    "description": "What pins and fallback rules may ask about beside the row's own values, such as who asks",
}
_TEXT = {"responses": {"200": {"description": "OK"}}}
_PLAIN_PATHS = {
    "/v1/models": {
        "get": _operation(
            "gateway",
            "models",
            "Names of the models",
            _object({"models": {"type": "array", "items": {"type": "string"}}}, {}),
        )
    },
    "/healthz": {"get": {"tags": ["gateway"], "operationId": "healthz", "summary": "The process lives", **_TEXT}},
    "/readyz": {
        "get": {
            "tags": ["gateway"],
            "operationId": "readyz",
            "summary": "It can answer for at least one model",
            "responses": {"200": {"description": "Ready"}, "503": {"description": "Not yet; the answer tells why"}},
        }
    },
    "/metrics": {"get": {"tags": ["gateway"], "operationId": "metrics", "summary": "For Prometheus", **_TEXT}},
}
