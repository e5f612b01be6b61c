"""A hook of MkDocs: the pages lie beside mkdocs.yml, in docs/, where GitHub shows them too."""

from pathlib import Path
from typing import Any


def on_config(config: Any) -> Any:
    config.docs_dir = str(Path(config.config_file_path).parent)
    return config
