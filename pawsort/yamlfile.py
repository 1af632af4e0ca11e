"""A YAML file of settings that knows its lines and collects what is wrong with it."""

from pathlib import Path

import yaml

from pawsort import errors

Key = tuple[str, ...]  # a key's path: ("limits", "pixels")


class _Loader(yaml.SafeLoader):
    """YAML without dates: a folder may be called 2024-01-31."""

    yaml_implicit_resolvers = {  # noqa: RUF012  the base class declares it
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


class Document:
    """The text of a settings file, what it says, in which line it says it, and what is wrong with it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.values: dict[object, object] = {}
        self._lines: dict[Key, int] = {}
        self._problems: list[tuple[int, str]] = []
        self._parse(self._text())

    def report(self, key: Key, problem: str) -> None:
        """Note a problem with `key`; raised with all others by `raise_problems`."""
        line = next((self._lines[key[:end]] for end in range(len(key), 0, -1) if key[:end] in self._lines), 0)
        name = ".".join(part if part.isprintable() else repr(part) for part in key)
        self._problems.append((line, self._sentence(f"{name}: {problem}", line)))

    def raise_problems(self) -> None:
        """Raise ConfigError if anything was reported, in the order of the file's lines."""
        if self._problems:
            raise errors.ConfigError(
                [sentence for _, sentence in sorted(self._problems, key=lambda each: each[0])]
            )

    def _sentence(self, problem: str, line: int) -> str:
        return f"{self.path}:{line}: {problem}" if line else f"{self.path}: {problem}"

    def _failure(self, problem: str, line: int = 0) -> errors.ConfigError:
        return errors.ConfigError([self._sentence(problem, line)])

    def _text(self) -> str:
        try:
            raw = self.path.read_bytes()
        except FileNotFoundError:
            raise self._failure("no such file; write one, or name another with --config") from None
        except OSError as error:
            raise self._failure(f"cannot be read: {error.strerror}") from error
        try:
            return raw.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = raw.count(b"\n", 0, error.start) + 1
            problem = f"byte 0x{raw[error.start]:02x} is not UTF-8; save the file as UTF-8"
            raise self._failure(problem, line) from None

    def _parse(self, text: str) -> None:
        """Fill values and lines."""
        try:
            loader = _Loader(text)
            root = loader.get_single_node()
            if root is None or (isinstance(root, yaml.ScalarNode) and not root.value):
                raise self._failure("is empty; it needs at least `inbox: FOLDER` and `sorted: FOLDER`")
            if not isinstance(root, yaml.MappingNode):
                raise self._failure(
                    "wants keys and values, such as `inbox: FOLDER`", root.start_mark.line + 1
                )
            self._index(root, ())  # before the values are made, which writes merged keys into the nodes
            self.values = loader.construct_document(root)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            where = f", column {mark.column + 1}" if mark else ""
            problem = ", ".join(part for part in (error.context, error.problem) if part)
            raise self._failure(f"is not YAML{where}: {problem}", mark.line + 1 if mark else 0) from error
        except yaml.reader.ReaderError as error:
            line = text.count("\n", 0, error.position) + 1
            raise self._failure(
                f"holds the control character 0x{error.character:02x}; remove it", line
            ) from error
        except (RecursionError, ValueError) as error:  # nested too deeply; a number that is none
            raise self._failure(f"is not YAML: {error}") from error

    def _index(self, node: yaml.MappingNode, parent: Key) -> None:
        """Remember the line of each key, and report keys that stand there twice: YAML would take the last."""
        for key_node, value_node in node.value:
            key = (*parent, str(key_node.value))
            line = key_node.start_mark.line + 1
            if key in self._lines:
                self.report(key, f"stands here and in line {line}; remove one of them")
            else:
                self._lines[key] = line
            if (
                isinstance(value_node, yaml.MappingNode)
                and value_node.start_mark.index > key_node.start_mark.index
            ):
                self._index(value_node, key)
