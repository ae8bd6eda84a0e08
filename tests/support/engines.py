"""Engines pointed at servers that they would not choose by themselves."""

from typing import Any

from google.auth.credentials import Credentials as GoogleCredentials
from google.oauth2.credentials import Credentials

from ckpt_remote.store import Retrying, Store, google
from ckpt_remote.store.faults import Request
from ckpt_remote.store.gcs_options import parse_gcs_options
from ckpt_remote.store.obstore_gcs import ObstoreGcsStore
from ckpt_remote.store.renew import Renewing
from ckpt_remote.store.urls import parse_bucket_url

__all__ = ["google_obstore"]


def google_obstore(url: str, endpoint: str, credentials: GoogleCredentials | None = None, **options: Any) -> Store:
    """The directory through obstore, which a custom endpoint does not get: the fake needs no real account.

    Args:
        url: The directory.
        endpoint: Where requests go instead of to Google.
        credentials: google-auth's; some token by default.
        options: More of gcsfs's options.
    """
    token = credentials or Credentials("a-token")
    parsed = parse_gcs_options({"token": token, "endpoint_url": endpoint, "access": "read_write", **options})

    def make(*, renewed: bool = False) -> ObstoreGcsStore:
        def connect(request: Request) -> google.Account:
            return google.connect(parsed, request, renewed=renewed)

        location = parse_bucket_url(url, "gs")
        return ObstoreGcsStore(location, connect, "obstore (a test)", parsed.patience, parsed.consistency)

    return Retrying(Renewing(make(), lambda: make(renewed=True)))
