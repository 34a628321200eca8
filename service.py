"""What `bentoml serve` finds in this repository: the service of the registry's champion, on http://127.0.0.1:3000."""

from prosemill.registry.champion import ChampionOfRegistry
from prosemill.serving import make_service

Service = make_service(ChampionOfRegistry())
