"""The file that MLflow runs to load a package (models from code)."""

from mlflow.models import set_model

from prosemill.packaged import PackagedModel

set_model(PackagedModel())
