"""YAML in which nothing is said twice."""

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML, YAMLError


def load_yaml(path: Path) -> Any:
    """The contents of a YAML file.

    Raises:
        ValueError: the file is no YAML, or a key stands twice.
    """
    try:
        return _yaml().load(path)
    except YAMLError as error:
        found = str(error).partition("\n\n")[0]  # then how to allow it
        raise ValueError(f"{path}: {found}") from error


def write_yaml(path: Path, contents: Any) -> None:
    """Write a YAML file, keys in their order."""
    _yaml().dump(contents, path)


def _yaml() -> YAML:
    yaml = YAML(typ="safe", pure=True)
    vars(yaml).update(default_flow_style=False, sort_base_mapping_type_on_output=False, width=100)
    return yaml
