"""The Parquet files of a Hugging Face dataset: from the hub at a pinned commit, or from a local folder of the same layout.

    source = open_hub(HubCorpus(source="hub", repository="owner/name", revision="…", configuration="plain_text"))

Ids are the file's path in the repository with `#` and the row (from 0). Only Parquet is fetched, and only from the one endpoint that
huggingface_hub is configured for (`HF_ENDPOINT`, else huggingface.co); a repository is a name, never an address.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Never

from prosemill.corpus.document import Document
from prosemill.corpus.files import file_states
from prosemill.corpus.folder import list_files, open_regular, real_folder
from prosemill.corpus.parquet import parquet_rows
from prosemill.corpus.splits import official_split
from prosemill.digests import sha256_of_file, sha256_of_value
from prosemill.errors import ProsemillError
from prosemill.hub import hub_errors, refuse_endpoint, refuse_wrong_name
from prosemill.params import HubCorpus


def open_hub(corpus: HubCorpus) -> "HubSource":
    """The source of a hub section. Raises `ProsemillError` if the repository is neither a folder nor a dataset that can be listed."""
    files = _local_files(corpus) if Path(corpus.repository).expanduser().is_dir() else _remote_files(corpus)
    return HubSource(corpus, files)


@dataclass(frozen=True, kw_only=True)
class _File:
    """One Parquet file of the dataset."""

    name: PurePosixPath
    """Its path in the repository."""
    num_bytes: int
    """Its size."""
    sha256: str | None
    """Its digest as the hub tells it, or None."""
    fetch: Callable[[], Path]
    """Gives the file's local path, fetching it on first use."""
    state: object
    """Changes when the file changes."""


class HubSource:
    """The rows of a dataset's Parquet files, in the order of their paths."""

    def __init__(self, corpus: HubCorpus, files: list[_File]) -> None:
        self._corpus, self._files = corpus, files
        self._digests: list[list[str]] = []
        self.dropped: Counter[str] = Counter()
        self.num_bytes = sum(file.num_bytes for file in files)

    def state(self) -> object:
        """What is known of each file without reading it."""
        return [[file.name.as_posix(), file.state] for file in self._files]

    def documents(self, advance: Callable[[int], object]) -> Iterator[Document]:
        """Every file's rows."""
        corpus = self._corpus
        for file in self._files:
            path, where = file.fetch(), f"{corpus.repository}/{file.name}"
            open_regular(path).close()
            digest = sha256_of_file(path)
            if file.sha256 is not None and digest != file.sha256:
                raise ProsemillError(f"{where} has the SHA-256 {digest}, not {file.sha256} as the hub says: delete {path} and try again")
            self._digests.append([file.name.as_posix(), digest])
            split = official_split(_below(corpus.configuration, file.name))
            for row in parquet_rows(path, where=where, text_key=corpus.text_key, label_key=corpus.label_key):
                yield Document(
                    document_id=f"{file.name}#{row.index}",
                    text=row.text,
                    source=file.name.as_posix(),
                    label=row.label,
                    official_split=split,
                )
            advance(file.num_bytes)

    def facts(self) -> dict[str, Any]:
        """The repository, its commit, the digest of all files, and the licence that params give."""
        corpus = self._corpus
        return {
            "source": "hub",
            "repository": corpus.repository,
            "revision": corpus.revision,
            "configuration": corpus.configuration,
            "num_files": len(self._files),
            "sha256": sha256_of_value(self._digests),
            "license": corpus.license,
            "attribution": corpus.attribution,
        }


def _below(configuration: str | None, name: PurePosixPath) -> PurePosixPath:
    """The path without the configuration's folders, whose names say nothing of splits."""
    return name.relative_to(configuration) if configuration else name


def _local_files(corpus: HubCorpus) -> list[_File]:
    root = real_folder(corpus.repository, "repository")
    # In huggingface_hub's own cache a snapshot's files are links to the dataset's blobs, two folders up.
    boundary = root.parents[1] if root.parent.name == "snapshots" else root
    found = list_files(root, ("**/*.parquet",), boundary)
    names = [name for name in found if _is_chosen(name.as_posix(), corpus.configuration)]
    if not names:
        _refuse_nothing([name.as_posix() for name in found], corpus)
    states = dict(zip(names, file_states(root, names), strict=True))
    return [
        _File(name=name, num_bytes=(root / name).stat().st_size, sha256=None, fetch=(root / name).absolute, state=states[name])
        for name in names
    ]


def _remote_files(corpus: HubCorpus) -> list[_File]:
    if corpus.repository.startswith((".", "/", "~")):
        raise ProsemillError(f"`download.corpus.repository`: the folder {corpus.repository} does not exist")
    refuse_wrong_name(corpus.repository, "download.corpus.repository")
    if corpus.revision is None:
        raise ProsemillError("`download.corpus.revision` is missing: pin the dataset's commit, 40 hexadecimal digits of its history page")
    from huggingface_hub import HfApi, constants

    refuse_endpoint(constants.ENDPOINT)
    with hub_errors(f"dataset {corpus.repository} at {corpus.revision}"):
        siblings = HfApi().dataset_info(corpus.repository, revision=corpus.revision, files_metadata=True).siblings or []
    parquet = {sibling.rfilename: sibling for sibling in siblings if sibling.rfilename.endswith(".parquet")}
    chosen = sorted(name for name in parquet if _is_chosen(name, corpus.configuration))
    if not chosen:
        _refuse_nothing(list(parquet), corpus)
    return [
        _File(
            name=PurePosixPath(name),
            num_bytes=parquet[name].size or 0,
            sha256=getattr(parquet[name].lfs, "sha256", None),
            fetch=_Fetch(corpus, name),
            state=parquet[name].blob_id,
        )
        for name in chosen
    ]


def _is_chosen(name: str, configuration: str | None) -> bool:
    parts = PurePosixPath(name).parts
    if ".." in parts or name.startswith("/"):
        return False
    wanted = PurePosixPath(configuration).parts if configuration else ()
    return parts[: len(wanted)] == wanted and len(parts) > len(wanted) and (bool(wanted) or len(parts) == 1)


def _refuse_nothing(names: list[str], corpus: HubCorpus) -> Never:
    """Raise `ProsemillError` that no file is chosen, naming the folders that hold Parquet."""
    where = f"folder {corpus.configuration}" if corpus.configuration else "top folder"
    folders = sorted({name.rpartition("/")[0] for name in names} - {""})
    remedy = f"set `configuration` to one of {', '.join(folders[:20])}" if folders else "only Parquet is read, choose another dataset"
    raise ProsemillError(f"{corpus.repository} has no Parquet file in its {where}: {remedy}")


@dataclass(frozen=True)
class _Fetch:
    """Fetches one file into huggingface_hub's own cache."""

    corpus: HubCorpus
    name: str

    def __call__(self) -> Path:
        from huggingface_hub import hf_hub_download

        with hub_errors(f"dataset {self.corpus.repository} at {self.corpus.revision}"):
            path = hf_hub_download(self.corpus.repository, self.name, repo_type="dataset", revision=self.corpus.revision)
        return Path(path).resolve()
