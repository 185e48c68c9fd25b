"""Places outside this machine: folders and object stores, opened by their URL through fsspec."""

from __future__ import annotations

from typing import Any

from odist.errors import UserError

OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss"}  # have no folders; making one could make a bucket
# A server that is gone is to be noticed in seconds; without these botocore tries for a minute and a half.
S3_OPTIONS: dict[str, Any] = {
    "config_kwargs": {
        "connect_timeout": 3,
        "read_timeout": 20,
        "retries": {"total_max_attempts": 2, "mode": "standard"},
    },
}


def open_store(url: str) -> tuple[Any, str]:
    """The fsspec file system of a folder or URL, and the path in it; nothing is asked of a server yet.

    Credentials and endpoints come from the environment.
    """
    import fsspec

    fs, root = fsspec.core.url_to_fs(url, **(S3_OPTIONS if url.startswith(("s3://", "s3a://")) else {}))
    return fs, root


def protocols(fs: Any) -> set[str]:
    """The names of a file system's kind, such as s3 and s3a."""
    return {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)


def is_local(fs: Any) -> bool:
    """Whether a file system is that of this machine."""
    return "file" in protocols(fs)


def check_url(url: str | None, *, key: str) -> None:
    """Check that the packages for the file system of `url` are there; the store itself is not asked.

    Raises UserError, naming the key that has it as its value.
    """
    if url is None or "://" not in url:
        return
    import fsspec

    protocol = url.partition("://")[0].rpartition("::")[2]
    try:
        fsspec.get_filesystem_class(protocol)
    except ValueError:
        raise UserError(
            f"{key}={url}: {protocol} is no kind of store that fsspec knows. Give a folder, or a URL such "
            "as s3://bucket/folder."
        ) from None
    except ImportError as error:
        cure = "Type: pip install 'odist[s3]'" if protocol in ("s3", "s3a") else f"{error}."
        raise UserError(f"{key}={url}: a package for {protocol}:// is not installed. {cure}") from None
