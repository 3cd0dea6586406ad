"""The OpenAPI document as one plain page: every route with parameters, examples, a curl command, errors; every shape as a table.

Rendered here and not by a script in the browser, so that it works without internet access, in a text browser, and printed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

Schema = Mapping[str, Any]

STYLE = """
:root { color-scheme: light dark; --line: #8884; --dim: #777; --code: #8881; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 0 auto; padding: 1rem 1.5rem 6rem; }
h1 { margin-bottom: 0 } h2 { margin-top: 3rem; border-bottom: 1px solid var(--line) } h3 { margin-top: 2.2rem }
a { color: inherit } code, pre { font: 13px/1.45 ui-monospace, monospace; background: var(--code); border-radius: 4px }
code { padding: 0 .25em } pre { padding: .7rem .9rem; overflow-x: auto }
table { border-collapse: collapse; width: 100% } td, th { text-align: left; vertical-align: top; padding: .25rem .6rem .25rem 0;
border-bottom: 1px solid var(--line) } th { font-weight: 600; color: var(--dim) } .dim { color: var(--dim) }
.method { font: 600 12px ui-monospace, monospace; border: 1px solid; border-radius: 4px; padding: .1em .5em; margin-right: .5em }
nav ul { columns: 2; padding-left: 1rem } summary { cursor: pointer }
"""


def render_page(document: Schema) -> str:
    info = document["info"]
    title = f"{info['title']} API {info['version']}"
    operations = list(_operations(document))
    body = [f"<h1>{escape(title)}</h1>", '<p class="dim">For programs: <a href="/openapi.json">/openapi.json</a></p>']
    body += [_prose(info["description"]), _contents(document, operations)]
    for tag in document["tags"]:
        body.append(
            f'<h2 id="{_anchor(tag["name"])}">{escape(tag["name"].capitalize())}</h2>{_prose(tag["description"])}'
        )
        body += [_operation(*found) for found in operations if tag["name"] in found[2]["tags"]]
    body.append('<h2 id="shapes">Shapes</h2>')
    body += [_shape(name, schema) for name, schema in sorted(document["components"]["schemas"].items())]
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    return (
        f'<!doctype html><html lang="en"><head>{head}<style>{STYLE}</style></head><body>{"".join(body)}</body></html>'
    )


def _operations(document: Schema) -> Iterator[tuple[str, str, Schema]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def _contents(document: Schema, operations: list[tuple[str, str, Schema]]) -> str:
    items = [
        f'<li><a href="#{_anchor(method, path)}"><code>{method} {escape(path)}</code></a> {escape(operation["summary"])}</li>'
        for method, path, operation in operations
    ]
    return f'<nav><ul>{"".join(items)}<li><a href="#shapes">Shapes</a></li></ul></nav>'


def _operation(method: str, path: str, operation: Schema) -> str:
    parts = [
        f'<h3 id="{_anchor(method, path)}"><span class="method">{method}</span><code>{escape(path)}</code></h3>',
        f"<p><b>{escape(operation['summary'])}.</b></p>",
        _prose(operation.get("description", "")),
        _parameters(operation.get("parameters", [])),
        f"<pre>{escape(_curl(method, path, operation))}</pre>",
    ]
    if body := operation.get("requestBody"):
        parts.append(f"<p>Body: {escape(body['description'])}</p>{_contents_of(body['content'])}")
    return "".join(parts) + _responses(operation["responses"])


def _parameters(parameters: list[Schema]) -> str:
    if not parameters:
        return ""
    rows = [
        f"<tr><td><code>{escape(p['name'])}</code></td><td>{escape(p['in'])}{', required' if p.get('required') else ''}</td>"
        f"<td>{_type(p['schema'])}</td><td>{_notes(p['schema'], p.get('description'))}</td></tr>"
        for p in parameters
    ]
    return f"<table><tr><th>parameter</th><th>in</th><th>type</th><th></th></tr>{''.join(rows)}</table>"


def _responses(responses: Schema) -> str:
    good = {status: found for status, found in responses.items() if status < "300"}
    bad = {status: found for status, found in responses.items() if status >= "300"}
    parts = [
        f"<p><b>{status}</b> {escape(found['description'])}</p>{_contents_of(found.get('content', {}))}"
        for status, found in good.items()
    ]
    if bad:
        rows = "".join(
            f"<p><b>{status}</b> {escape(found['description'])}</p>{_contents_of(found.get('content', {}))}"
            for status, found in bad.items()
        )
        parts.append(f"<details><summary>Errors: {', '.join(bad)}</summary>{rows}</details>")
    return "".join(parts)


def _contents_of(content: Schema) -> str:
    parts = []
    for kind, media in content.items():
        parts.append(f'<p class="dim"><code>{escape(kind)}</code> {_type(media.get("schema", {}))}</p>')
        examples = [one["value"] for one in media.get("examples", {}).values()]
        examples += [media["example"]] if "example" in media else []
        parts += [f"<pre>{escape(_text(example))}</pre>" for example in examples]
    return "".join(parts)


def _curl(method: str, path: str, operation: Schema) -> str:
    words = ["curl -s"]
    if method != "GET":
        words.append(f"-X {method}")
    if operation.get("security"):
        words.append('-H "Authorization: Bearer $KEY"')
    for kind, media in operation.get("requestBody", {}).get("content", {}).items():
        if kind == "multipart/form-data":
            words += ["-F purpose=bundle", "-F file=@code.zip"]
            break
        example = next(iter(media["examples"].values()))["value"]
        words += [f'-H "Content-Type: {kind}"', f"-d '{json.dumps(example)}'"]
        break
    if "text/event-stream" in operation["responses"].get("200", {}).get("content", {}):
        words += ['-N -H "Accept: text/event-stream"']
    address = re.sub(r"{(\w+)(:path)?}", r"<\1>", path)
    return " ".join([*words, f'"$URL{address}"'])


def _shape(name: str, schema: Schema) -> str:
    required = schema.get("required", [])
    rows = [
        f"<tr><td><code>{escape(field)}</code></td><td>{_type(part)}{', required' if field in required else ''}</td>"
        f"<td>{_notes(part, part.get('description'))}</td></tr>"
        for field, part in schema.get("properties", {}).items()
    ]
    table = (
        f"<table><tr><th>field</th><th>type</th><th></th></tr>{''.join(rows)}</table>"
        if rows
        else f"<p>{_type(schema)}</p>"
    )
    return f'<h3 id="{_anchor("shape", name)}"><code>{escape(name)}</code></h3>{_prose(schema.get("description", ""))}{table}'


def _type(schema: Schema) -> str:
    """The type in a few words; shapes are links."""
    if reference := schema.get("$ref"):
        name = reference.rpartition("/")[2]
        return f'<a href="#{_anchor("shape", name)}">{escape(name)}</a>'
    if "const" in schema:
        return f"<code>{escape(json.dumps(schema['const']))}</code>"
    if "enum" in schema:
        return " | ".join(f"<code>{escape(json.dumps(value))}</code>" for value in schema["enum"])
    for union in ("anyOf", "oneOf"):
        if union in schema:
            return " | ".join(map(_type, schema[union]))
    kind = schema.get("type", "any")
    if kind == "array":
        return f"list of {_type(schema.get('items', {}))}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), Mapping):
        return f"object of {_type(schema['additionalProperties'])}"
    return escape(schema.get("format", kind) if kind == "string" else kind)


def _notes(schema: Schema, description: str | None) -> str:
    """Description, bounds and default of a field, wherever in a union they stand."""
    notes = [escape(description)] if description else []
    limits = {"minimum": "at least", "maximum": "at most", "exclusiveMinimum": "above", "exclusiveMaximum": "below"}
    for part in (schema, *schema.get("anyOf", [])):
        notes += [f"{words} {part[key]}" for key, words in limits.items() if key in part]
    if schema.get("default") is not None:
        notes.append(f"default <code>{escape(json.dumps(schema['default']))}</code>")
    return "; ".join(notes)


def _prose(text: str) -> str:
    """Paragraphs, indented code and `code`: as much of Markdown as our descriptions use."""
    parts = []
    for block in re.split(r"\n\s*\n", text.strip("\n")):
        if block.startswith("    "):
            parts.append(f"<pre>{escape(re.sub(r'(?m)^    ', '', block))}</pre>")
        elif block.strip():
            parts.append("<p>" + re.sub(r"``?([^`]+)``?", r"<code>\1</code>", escape(block)) + "</p>")
    return "".join(parts)


def _text(example: Any) -> str:
    return example if isinstance(example, str) else json.dumps(example, indent=2, ensure_ascii=False)


def _anchor(*words: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", " ".join(words).lower()).strip("-")
