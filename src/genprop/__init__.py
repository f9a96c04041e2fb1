"""genprop: carries the edit of one video frame through the whole video.

`genprop.remove(frames, masks=...)` removes an object from a video; `genprop.load(model)` opens a model. Both
are looked up on first use, so that `import genprop` costs nothing and a part of the package never pulls in
the others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from genprop.runtime.propagate import load
    from genprop.runtime.removal import remove

__all__ = ["__version__", "load", "remove"]
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """`load` and `remove`, imported when they are first asked for (PEP 562)."""
    if name == "load":
        from genprop.runtime.propagate import load

        return load
    if name == "remove":
        from genprop.runtime.removal import remove

        return remove
    raise AttributeError(f"module 'genprop' has no attribute {name!r}")
