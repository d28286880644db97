"""YAML in which nothing is said twice."""

from pathlib import Path
from typing import Any

import yaml


def load_yaml(path: Path) -> Any:
    """The contents of a YAML file.

    Raises:
        ValueError: the file is no YAML, or a key stands twice, where YAML's own way is to take the
            last in silence.
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_Strict)
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: {error}") from error


class _Strict(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key, (at, _) in zip(keys, node.value, strict=True):
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice", at.start_mark
                )
        return super().construct_mapping(node, deep)
