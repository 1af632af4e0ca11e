"""Build hook: a wheel carries the model that `models/current` names, and what `pawsort service` installs."""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ShippedFiles(BuildHookInterface):
    """Adds them to a wheel, and leaves an editable install to find them where they are."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the files that the link points at; refuse to build a wheel that could sort nothing."""
        if version == "editable":
            return
        model = Path(self.root, "models", "current")
        if not (model / "bundle.json").is_file():
            raise FileNotFoundError(
                f"{model} holds no model (no bundle.json): train one with `pawsort-train fit` "
                "and point models/current at it before building a wheel"
            )
        build_data["force_include"][str(model)] = "pawsort/shipped"
        units = Path(self.root, "systemd")
        for file in (*units.glob("*.in"), Path(self.root, "config.yaml")):
            build_data["force_include"][str(file)] = f"daemon/units/{file.name}"
