"""genprop: carries the edit of one video frame through the whole video.

`genprop.load(model)` opens a model for propagation. It is looked up on first use, so that
`import genprop` costs nothing and a part of the package never pulls in the others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from genprop.runtime.propagate import load

__all__ = ["__version__", "load"]
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """`load`, imported when it is first asked for (PEP 562)."""
    if name == "load":
        from genprop.runtime.propagate import load

        return load
    raise AttributeError(f"module 'genprop' has no attribute {name!r}")
