"""What `bentoml serve` finds in this repository: the service of the registry's champion, on http://127.0.0.1:3000."""

from prosemill.serving import Service

__all__ = ["Service"]
