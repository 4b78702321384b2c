"""YAML and JSON as Kubernetes reads and writes them: text to values and back.

PyYAML is imported here alone. Where it is missing, as in the image, JSON still works.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from istio_init.errors import InitError

if TYPE_CHECKING:
    import yaml

MISSING = "YAML needs PyYAML (pip install pyyaml), which is not here: {}"


def load(text: str) -> list[Any]:
    """The documents of a text, JSON or YAML, those that hold nothing left out. ValueError where it is neither."""
    if text.lstrip().startswith(("{", "[")):
        try:
            return [json.loads(text)]
        except ValueError:
            pass  # Perhaps YAML's flow style; if not, YAML's complaint tells the line as well.
        except RecursionError:
            raise ValueError("nested too deeply") from None
    yaml = _yaml("give JSON, as of kubectl get pod NAME -o json")
    try:
        return [document for document in yaml.safe_load_all(text) if document is not None]
    except yaml.MarkedYAMLError as error:
        where = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ValueError(f"not YAML: {where}{error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise ValueError(f"not YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except ValueError as error:  # A date that there is none of, an integer of too many digits.
        raise ValueError(f"not YAML: {error}") from None


def dump(value: Any, form: str) -> str:  # noqa: ANN401 (whatever JSON can hold)
    """The value as "yaml" or "json", its order kept. InitError for YAML where PyYAML is missing."""
    if form == "json":
        return json.dumps(value, indent=2) + "\n"
    yaml = _yaml("use --output json")
    text: str = yaml.dump(value, Dumper=_dumper(), sort_keys=False, allow_unicode=True, width=10_000)
    return text


def _yaml(advice: str) -> Any:  # noqa: ANN401 (the module)
    try:
        import yaml
    except ImportError:
        raise InitError(MISSING.format(advice)) from None
    return yaml


def _dumper() -> type[yaml.SafeDumper]:
    """A dumper that puts every entry of a list in quotes, and indents no list.

    Those are a container's arguments. What a bare word is depends on who reads it: to Go's YAML library y is
    a boolean and 1e3 a number.
    """
    import yaml

    class Dumper(yaml.SafeDumper):
        pass

    def represented(dumper: yaml.SafeDumper, data: list[Any]) -> yaml.Node:
        node = dumper.represent_sequence("tag:yaml.org,2002:seq", data)
        for each in node.value:
            if each.tag == "tag:yaml.org,2002:str":
                each.style = '"'
        return node

    Dumper.add_representer(list, represented)
    return Dumper
