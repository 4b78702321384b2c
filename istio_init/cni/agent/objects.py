"""The API server's JSON: pods, lists of them, and the events of a watch. HttpError where it is something else."""

from __future__ import annotations

import json
from typing import Any

from istio_init.cni.agent.http import HttpError
from istio_init.cni.agent.pods import NodePod, from_object, text_member
from istio_init.errors import shown

# The status that a resource version is too old for a watch.
GONE = 410


def parse(data: bytes) -> Any:  # noqa: ANN401 (JSON)
    """Any object of the API."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise HttpError(f"the answer is no JSON: {shown(str(error))[1:-1]}") from error


def parse_pod(data: bytes) -> NodePod:
    """A pod."""
    try:
        return from_object(parse(data))
    except ValueError as error:
        raise HttpError(f"the answer is no pod: {error}") from error


def parse_list(data: bytes) -> tuple[list[NodePod], str]:
    """The pods of a list, and its resource version."""
    try:
        document = json.loads(data, object_hook=_reduced)
        version, items = text_member(document["metadata"], "resourceVersion"), document["items"] or []
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise HttpError(f"the answer is no list of pods: {shown(str(error))[1:-1]}") from error
    if not isinstance(items, list) or not all(isinstance(each, NodePod) for each in items):
        raise HttpError("the answer is no list of pods: an item is none")
    return items, version


def _reduced(value: dict[str, Any]) -> Any:  # noqa: ANN401 (JSON)
    """Convert each pod while JSON is parsed, so that a long list never exists as dicts.

    Much of a pod has members of these names, its labels for one, or the template of a volume claim.
    """
    if "spec" in value and "metadata" in value:
        try:
            return from_object(value)
        except ValueError:
            pass
    return value


def parse_event(line: bytes) -> tuple[str, Any]:
    """The type of a watch's event, and its pod, or the resource version of a BOOKMARK.

    HttpError for an ERROR, with its code as status; with status 410 for what is no event, so that all is listed anew.
    """
    try:
        event = json.loads(line)
        kind, content = str(event["type"]), event["object"]
        if kind == "ERROR":
            why, code = shown(str(content.get("message")), 200), int(content.get("code") or 0)
        elif kind != "BOOKMARK":
            return kind, from_object(content)
        else:
            return kind, text_member(content["metadata"], "resourceVersion")
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise HttpError(f"the watch: no event: {shown(str(error))[1:-1]}", GONE) from error
    raise HttpError(f"the watch: {why}", code)
