"""The same calls as tasks and actors of Ray; needs the package ``ray``.

Import it as ``import entityframes.ray``; ``import entityframes`` imports nothing of Ray.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

try:
    import ray  # noqa: F401
except ImportError as error:
    raise ImportError("entityframes.ray needs Ray: pip install ray") from error

from entityframes.ray.upsert import upsert

if TYPE_CHECKING:
    from entityframes.ray.embedding import embed
    from entityframes.ray.sink import EntitySink

__all__ = ["EntitySink", "embed", "upsert"]

#: The modules of names that are loaded on first access: Ray Data is large, and workers that upsert do not need it.
_LATER = {"EntitySink": "sink", "embed": "embedding"}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
    return found


def __dir__() -> list[str]:
    """The public names, loaded or not, and no modules: what completion offers."""
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
