"""The registry's champion, loaded to be served.

champion = load_champion()
champion.generate("The history of", max_new_tokens=20, temperature=0.8, top_p=0.9, seed=0)
"""

import threading
from dataclasses import dataclass, field

import pandas as pd

from prosemill.errors import ProsemillError
from prosemill.packaged import PackagedModel
from prosemill.registry.lineage import model_folder
from prosemill.registry.store import CHAMPION, MODEL_NAME, Registry, Version


@dataclass(frozen=True)
class Champion:
    """A loaded version."""

    version: int
    _model: PackagedModel
    _turn: threading.Lock = field(default_factory=threading.Lock)

    def generate(self, prompt: str, **settings: float) -> str:
        """Continue a prompt; settings are those of `prosemill.packaged.DEFAULTS`. Requests take turns.

        Raises:
            ValueError: prompt and new tokens are more than the model sees.
        """
        with self._turn:
            answer = self._model.predict(None, pd.DataFrame({"prompt": [prompt]}), settings)
        return str(answer["generated_text"][0])


def find_champion() -> tuple[Registry, Version]:
    """The version that is to be served. Raises `ProsemillError` if there is none."""
    registry = Registry.open()
    number = registry.served().champion
    if number is None:
        raise ProsemillError(f"{MODEL_NAME} has no {CHAMPION} to serve: `prosemill register` and `prosemill promote` make one")
    return registry, registry.version(number)


def check_champion() -> None:
    """Raise `ProsemillError` if there is no champion, or its package is not as it was registered."""
    registry, version = find_champion()
    with registry.whole_package(version):
        pass


def load_champion() -> Champion:
    """Load the champion's weights. Nothing of the package is run, and nothing read before its digest is verified.

    Raises:
        ProsemillError: there is none, or its package is not as it was registered.
    """
    registry, version = find_champion()
    model = PackagedModel()
    with registry.whole_package(version) as folder:
        model.open(model_folder(folder))
    return Champion(version.number, model)
