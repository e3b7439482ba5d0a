"""Settings: packaged configuration files, and YAML read strictly into frozen models."""

from chaperone_common.settings.models import FrozenModel, RelativePath, load_yaml

__all__ = ["FrozenModel", "RelativePath", "load_yaml"]
