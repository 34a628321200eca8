"""A package is the trained model, for every family, in a process that knows nothing of this repository."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from safetensors.torch import load_file, save_file

import prosemill
from prosemill.errors import ProsemillError
from prosemill.families import families, family_of, read_config
from prosemill.packaged import CODE, REQUIREMENTS, PackagedModel
from prosemill.pretrained import end_of_text_id, load_model, load_tokenizer
from prosemill.registry import packaging
from prosemill.registry.packaging import Package, log_package, pinned
from prosemill.registry.store import package_digest
from prosemill.tracking import open_run
from tests.conftest import environment
from tests.models import write_model


@pytest.fixture(scope="module", params=list(families()))
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A tiny model of each family in turn."""
    folder: Path = tmp_path_factory.mktemp(f"trained-{request.param}")
    write_model(folder, request.param, tiny_model)
    return folder


@pytest.fixture(scope="module")
def package(trained: Path, tracking_store: dict[str, str]) -> Package:
    """Its package; making it has compared the two."""
    return logged(trained, tracking_store)


def logged(trained: Path, store: dict[str, str]) -> Package:
    with environment(store), open_run("9" * 16, name="tiny") as run:
        return log_package(trained, run_id=run.run_id, name="tiny", params={"fingerprint": "9" * 16})


def local_folder(package: Package, store: dict[str, str]) -> Path:
    with environment(store):
        location = mlflow.MlflowClient(store["MLFLOW_TRACKING_URI"]).get_logged_model(package.model_id).artifact_location
    return Path(location.removeprefix("file://"))


def test_the_package_gives_the_trained_models_logits(trained: Path, package: Package, tracking_store: dict[str, str]) -> None:
    assert package.logit_difference <= 1e-5
    folder = local_folder(package, tracking_store)
    assert package_digest(folder) == package.digest
    model = PackagedModel()
    model.open(trained)
    (logits,) = model.logits(["The history of"])
    assert logits.shape[1] == load_model(trained).config.vocab_size
    assert logits.dtype == np.float32
    assert logits.std() > 0


def test_a_prompts_text_depends_on_its_own_params_alone(trained: Path) -> None:
    model = PackagedModel()
    model.open(trained)
    prompts = ["The history of", "In physics,", "", "naïve 東京"]
    params = {"max_new_tokens": 12, "seed": 3}

    def texts(prompts: list[str], **params: Any) -> list[str]:
        return list(model.predict(None, pd.DataFrame({"prompt": prompts}), params)["generated_text"])

    together = texts(prompts, **params)
    assert together == [texts([prompt], **params)[0] for prompt in prompts]
    assert together != texts(prompts, max_new_tokens=12, seed=4)
    greedy = texts(prompts, max_new_tokens=12, temperature=0.0)
    assert greedy == texts(prompts, max_new_tokens=12, temperature=0.0, seed=99, top_p=0.5)
    assert greedy != together
    for wrong in ({"max_new_tokens": 0}, {"temperature": -1.0}, {"top_p": 0.0}, {"seed": -1}):
        with pytest.raises(ValueError, match="max_new_tokens must be at least 1"):
            texts(prompts, **wrong)


def test_a_prompt_and_its_new_tokens_may_fill_the_context_and_no_more(trained: Path) -> None:
    model = PackagedModel()
    model.open(trained)
    family, tokenizer, prompt = family_of(trained), load_tokenizer(trained), pd.DataFrame({"prompt": ["The history of"]})
    tokens = tokenizer.encode("The history of", add_special_tokens=False)
    num_given = family.num_given(family.prompt([tokens], end_of_text_id(tokenizer)))
    context = family.context_size(read_config(trained))
    if context is None:  # relative positions have no bound
        assert model.predict(None, prompt, {"max_new_tokens": 300})["generated_text"][0]
        return
    assert model.predict(None, prompt, {"max_new_tokens": context - num_given})["generated_text"][0]
    with pytest.raises(ValueError, match=f"are {context + 1} tokens, and the model sees {context} at most"):
        model.predict(None, prompt, {"max_new_tokens": context - num_given + 1})


def test_a_package_with_other_weights_is_refused(
    tiny_model: Path, tmp_path: Path, tracking_store: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = tmp_path / "trained"
    trained.mkdir()
    write_model(trained, "llama", tiny_model)
    original = packaging._build

    def build(trained: Path, folder: Path, code: Path) -> None:
        original(trained, folder, code)
        (weights,) = folder.rglob("*.safetensors")
        tensors = load_file(weights)
        tensors["model.norm.weight"][0] += 1e-3
        save_file(tensors, weights, metadata={"format": "pt"})

    monkeypatch.setattr(packaging, "_build", build)
    with pytest.raises(ProsemillError, match=r"the package is not the trained model \(logits differ by .*\): nothing is registered"):
        logged(trained, tracking_store)


def test_a_package_that_needs_the_checkout_is_refused(tiny_model: Path, tmp_path: Path, tracking_store: dict[str, str]) -> None:
    trained = tmp_path / "trained"
    trained.mkdir()
    write_model(trained, "llama", tiny_model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("prosemill.packaged.CODE", tuple(name for name in CODE if name != "families"))
        with pytest.raises(ProsemillError, match=r"the package lacks prosemill\.families, which it imports|does not load"):
            logged(trained, tracking_store)


def test_requirements_are_exact_and_of_an_index() -> None:
    found = pinned(REQUIREMENTS)
    assert [line.partition("==")[0] for line in found] == list(REQUIREMENTS)
    assert not any("+" in line for line in found)


def test_the_package_says_what_it_takes_and_gives(package: Package, tracking_store: dict[str, str]) -> None:
    content = mlflow.models.Model.load(str(local_folder(package, tracking_store)))
    assert content.signature is not None
    assert [column["name"] for column in content.signature.inputs.to_dict()] == ["prompt"]
    assert [column["name"] for column in content.signature.outputs.to_dict()] == ["generated_text"]
    assert {param["name"]: param["default"] for param in content.signature.params.to_dict()} == {
        "max_new_tokens": 100,
        "temperature": 0.8,
        "top_p": 0.9,
        "seed": 0,
    }
    example = json.loads((local_folder(package, tracking_store) / "input_example.json").read_text())
    assert example["columns"] == ["prompt"]


def test_the_packages_code_is_whole_by_itself(tmp_path: Path) -> None:
    """Every module that a package carries imports nothing of prosemill that it does not carry."""
    source = Path(prosemill.__file__).parent
    code = (
        "import sys, pathlib; import prosemill.packaged, prosemill.families as f; f.families();"
        "print('\\n'.join(m.__file__ for n, m in sys.modules.items() if n.split('.')[0] == 'prosemill'))"
    )
    finished = subprocess.run([sys.executable, "-c", code], cwd=source.parent, capture_output=True, text=True, check=True)
    loaded = {Path(line).relative_to(source).parts[0] for line in finished.stdout.splitlines()}
    assert loaded <= set(CODE)
