"""msgspec, without what it would import besides.

Where ``typing_extensions`` is installed msgspec takes from it what Python 3.11 has in ``typing``, and to import that is
a fifth of importing libvnf. So it is not to be found meanwhile; msgspec then takes ``typing``.
"""

import sys

_hidden = "typing_extensions" not in sys.modules
if _hidden:
    sys.modules["typing_extensions"] = None  # type: ignore[assignment]
try:
    import msgspec
    from msgspec import inspect
finally:
    if _hidden:
        del sys.modules["typing_extensions"]

__all__ = ["inspect", "msgspec"]
