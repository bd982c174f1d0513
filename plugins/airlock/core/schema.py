"""What a model's users rely on: the inputs that they send, and what the answer means."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

from airlock.core.bundle import Manifest
from airlock.core.spec import Input, Task


def interface_of(manifest: Manifest) -> dict[str, str]:
    """What one has to know beside the inputs to ask and to read the answer, by aspect, in words."""
    known = {"task": manifest.task.value, "label": manifest.label.name, "output": manifest.output}
    if manifest.task is Task.CLASSIFICATION:
        known["positive class"] = manifest.label.positive
    if manifest.features is not None:
        known["entities"] = ", ".join(sorted(manifest.features.entities))
        request = manifest.features.request
        known["values of a request"] = ", ".join(f"{name} ({request[name].type})" for name in sorted(request))
    return known


def changes(
    inputs: Mapping[str, Input],
    interface: Mapping[str, str],
    before_inputs: Mapping[str, Input],
    before_interface: Mapping[str, str],
) -> list[str]:
    """What is different from before, one sentence an input or aspect; the order of the inputs does not matter."""
    said = [f"{name} is new" for name in inputs if name not in before_inputs]
    said += [f"{name} is gone" for name in before_inputs if name not in inputs]
    for name in inputs:
        if name in before_inputs and inputs[name] != before_inputs[name]:
            now, before = inputs[name].model_dump(), before_inputs[name].model_dump()
            fields = [f"{field} {before[field]} -> {now[field]}" for field in now if now[field] != before[field]]
            said.append(f"{name}: {', '.join(fields)}")
    for aspect in dict.fromkeys([*interface, *before_interface]):
        new, old = interface.get(aspect, "none"), before_interface.get(aspect, "none")
        if new != old:
            said.append(f"{aspect}: {old} -> {new}")
    return said


def schema_digest(manifest: Manifest) -> str:
    """Changes when :func:`changes` would name something."""
    inputs = {name: declared.model_dump(mode="json") for name, declared in manifest.inputs.items()}
    content = json.dumps({"inputs": inputs, "interface": interface_of(manifest)}, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()
