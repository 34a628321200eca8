"""What a Hugging Face hub asks of a careful client: names that are no addresses, one endpoint, and errors that a person can act on.

refuse_wrong_name("owner/name", "download.model.repository")
refuse_endpoint(constants.ENDPOINT)
with hub_errors("dataset owner/name at 0123…"):
    hf_hub_download(…)
"""

import ipaddress
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from prosemill.errors import ProsemillError, TemporaryError

REPOSITORY = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*/)?[A-Za-z0-9][A-Za-z0-9._-]*$")


TOO_MANY_REQUESTS, SERVER_ERROR = 429, 500  # of HTTP's statuses; from 500 on it is the server's fault


def refuse_wrong_name(repository: str, key: str) -> None:
    """Raise `ProsemillError` unless it is a repository's name, never an address or a path; `key` is the param that holds it."""
    if not REPOSITORY.match(repository) or ".." in repository:
        raise ProsemillError(f"`{key}`: {repository!r} is no repository's name; give owner/name or a local folder")


@contextmanager
def hub_errors(what: str) -> Iterator[None]:
    """Turn what huggingface_hub raises into one line that says what to do; `what` is being fetched."""
    from huggingface_hub import constants, errors

    http_error: type[Exception] = errors.HTTPError  # type: ignore[attr-defined]
    local = "or fetch it elsewhere and set `repository` to the folder"
    offline = f"no network: HF_HUB_OFFLINE is set, so {what} cannot be fetched; unset it, {local}"
    try:
        yield
    except ProsemillError:
        raise
    except errors.GatedRepoError:
        raise ProsemillError(f"{what} is gated: accept its terms on its page and log in with `hf auth login`") from None
    except errors.RepositoryNotFoundError:
        raise ProsemillError(f"{what} is not found at {constants.ENDPOINT}: correct its name, or log in if it is private") from None
    except (errors.RevisionNotFoundError, errors.RemoteEntryNotFoundError):
        raise ProsemillError(f"{what} is not found: it has no such commit; copy the commit from its history page") from None
    except errors.OfflineModeIsEnabled:
        raise ProsemillError(offline) from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        kind = TemporaryError if status == TOO_MANY_REQUESTS or status >= SERVER_ERROR else ProsemillError
        raise kind(f"{constants.ENDPOINT} answers {status} for {what}: try again later, {local}") from None
    except (KeyError, TypeError, ValueError) as error:
        raise ProsemillError(f"{constants.ENDPOINT} does not answer for {what} as a hub does ({error!r}): check HF_ENDPOINT") from None
    except (http_error, errors.LocalEntryNotFoundError, ConnectionError) as error:
        if constants.HF_HUB_OFFLINE:
            raise ProsemillError(offline) from None
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise TemporaryError(f"no network: {constants.ENDPOINT} cannot be reached for {what} ({reason}); connect, {local}") from None


def refuse_endpoint(endpoint: str) -> None:
    """Refuse a hub endpoint that no mirror has: not HTTP, without a host, or a link-local address, where clouds keep credentials.

    Addresses of a private network are accepted: the endpoint is set by whoever runs the machine, and companies have mirrors.

    Raises:
        ProsemillError: the endpoint is such an address, or its name resolves to one.
    """
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ProsemillError(f"HF_ENDPOINT is {endpoint!r}: set it to an address such as https://huggingface.co, or unset it")
    try:
        found = socket.getaddrinfo(parts.hostname, parts.port or 443, type=socket.SOCK_STREAM)
    except OSError:
        return  # behind a proxy names need not resolve here; the request itself tells when there is no network
    for *_, address in found:
        found_ip = ipaddress.ip_address(str(address[0]).partition("%")[0])
        if (getattr(found_ip, "ipv4_mapped", None) or found_ip).is_link_local:
            raise ProsemillError(f"HF_ENDPOINT {endpoint} is the link-local address {address[0]}, which no hub has: correct or unset it")
