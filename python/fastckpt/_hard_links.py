"""File systems without second names. Imports no torch."""

from __future__ import annotations

import errno

#: What says that a file gets no second name here, rather than that it failed: file systems without hard links,
#: network file systems, and those that have given a file as many as they can.
NO_LINKS = frozenset({errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS})
