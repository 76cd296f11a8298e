"""Push a released version to a repository on the Hugging Face hub, or to an OCI registry.

What is pushed is the version's folder, byte for byte: whoever has it compares it with its manifest
and its signature. `release.jsonl` stays, since it grows; it states where the version was pushed.

In a registry a version is a model artifact of the CNCF's ModelPack: media types and configuration
follow https://github.com/modelpack/model-spec, the calls the OCI distribution specification. Each
file is a layer, neither packed nor compressed, so that its digest is the hash in the manifest.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import tempfile
from collections.abc import Generator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.request import parse_http_list, parse_keqv_list

import httpx

from tuneline.artifacts.deployment import CHOICE
from tuneline.artifacts.release_log import Pushed, read_log, withdrawal
from tuneline.artifacts.releases import (
    ADAPTER_FOLDER,
    CONFIG_FILE,
    LINEAGE_EVIDENCE,
    LINEAGE_STATEMENTS,
    MANIFEST_FILE,
    MODEL_FILE,
    POINTERS,
    SERVED,
    Release,
    find_version,
    model_prefix,
)
from tuneline.config.deployment import Destination
from tuneline.errors import RetryableError, TunelineError, UserError, first_line
from tuneline.evidence import FileRef
from tuneline.governance.release.log_check import lineage_differences
from tuneline.governance.release.pointer import Pointed, complete, read_pointer, record
from tuneline.governance.release.signature import SIGNATURE
from tuneline.governance.release.verify import served_differences
from tuneline.models.origins import call_hub
from tuneline.people.terminal import this_user
from tuneline.run import Run
from tuneline.store import Changed, Store

# The manifest does not state them: it is written before they are.
_ADDED = (MANIFEST_FILE, SIGNATURE, LINEAGE_EVIDENCE, *LINEAGE_STATEMENTS)
# Where a version has files that the next one may lack.
_VARYING = (*SERVED, ADAPTER_FOLDER, "evidence/", "attestations/", "licenses/")
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_MODEL = "application/vnd.cncf.model"
# Where a layer's file goes: by ModelPack, and for `oras pull`.
_PATH = ("org.cncf.model.filepath", "org.opencontainers.image.title")
_WEIGHTS = (".gguf", ".safetensors", ".engine", ".bin")
# A registry hashes a layer of gigabytes before it answers.
_TIMEOUT = httpx.Timeout(60, read=600)


def destinations_of(run: Run, more: Sequence[str]) -> list[Destination]:
    """Return the destinations of a run's settings and of a command line, each once."""
    try:
        return list(dict.fromkeys(map(Destination.parse, [*run.config.deployment.push_to, *more])))
    except ValueError as error:
        raise UserError(f"can't push to {error}") from None


def push_everywhere(run: Run, destinations: Sequence[Destination]) -> None:
    """Push the version that a run has released; one destination that fails stops no other.

    Raises:
        RetryableError: if another try may help wherever it failed; the release stands.
        UserError: if it failed somewhere for another reason.
    """
    name, failed = run.config.name, list[TunelineError]()
    for destination in destinations:
        try:
            print(push(run.store, name, run.run_id, destination, this_user()))
        except TunelineError as error:
            failed.append(error)
    if failed:
        retryable = all(isinstance(error, RetryableError) for error in failed)
        raise (RetryableError if retryable else UserError)(
            f"{name} {run.run_id} is released, but not pushed: {'; '.join(map(str, failed))}; "
            "run promote again to push it"
        )


def push(store: Store, name: str, version: str, to: Destination, by: str) -> str:
    """Push a released version and log it; return one sentence about it.

    Raises:
        UserError: if it is not released, not what was released, or refused there.
        RetryableError: if the other side can't be reached; what it has is not sent again.
    """
    release = _released(store, name, version)
    with tempfile.TemporaryDirectory(prefix="tuneline-push-") as folder:
        what = (to, release, _files(release), Path(folder))
        if to.scheme == "hf":
            digest, how = call_hub(to.uri, lambda: push_to_hub(*what), "")
        else:
            digest, how = push_to_registry(*what)
    pointed = _pointed(store, name, version)
    before = (line.event for line in read_log(store, name, version).lines())
    if (to.uri, digest) not in [(e.to, e.digest) for e in before if isinstance(e, Pushed)]:
        event = Pushed(by=by, to=to.uri, digest=digest)
        try:
            record(pointed, version, release.sha256, [event])
        except Changed:
            raise RetryableError(f"{to.uri} has it, but its log is written by others") from None
    return f"{name} {version} is at {to.uri} as {digest} ({how})"


def _released(store: Store, name: str, version: str) -> Release:
    """Return a released version, after its files were compared with what was released."""
    complete(_pointed(store, name, version))
    lines = read_log(store, name, version).lines()
    if why := withdrawal(lines):
        raise UserError(f"{name} {version} was withdrawn: {why}")
    sha256 = lines[0].previous_sha256
    differing = served_differences(store, name, version)
    differing += lineage_differences(store, name, version, sha256, None)[0]
    release = find_version(store, name, version, sha256)
    if differing or release is None:
        raise UserError(f"{name} {version} is not what was released: {'; '.join(differing)}")
    return release


def _pointed(store: Store, name: str, version: str) -> Pointed:
    """Return the pointer that has pointed to a version."""
    for which in POINTERS:
        pointed = read_pointer(store, name, which)
        if pointed.pointer and version in [move.version for move in pointed.pointer.history]:
            return pointed
    raise UserError(f"{name} {version} was never released; promote it first")


def _files(release: Release) -> list[FileRef]:
    """Return the files that are pushed, by their names in the version's folder."""
    prefix = model_prefix(release.name, release.version)
    added = ((name, release.store.find(f"{prefix}/{name}")) for name in _ADDED)
    return [
        *filter(None, (release.find(entry.name) for entry in release.manifest.files)),
        *(ref.model_copy(update={"name": name}) for name, ref in added if ref is not None),
    ]


def push_to_hub(
    to: Destination, release: Release, files: Sequence[FileRef], folder: Path
) -> tuple[str, str]:
    """Commit the files to a branch and tag the commit; return its id and how it came there.

    The client reads `HF_TOKEN` and `HF_ENDPOINT`. A repository that is not there is made, private.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api, version = HfApi(), release.version
    repository, branch = f"{to.owner}/{to.repository}", to.label or "main"
    api.create_repo(repository, private=True, exist_ok=True)
    tags = {tag.name: tag.target_commit for tag in api.list_repo_refs(repository).tags}
    if commit := tags.get(version):
        _compare(api.model_info(repository, revision=commit, files_metadata=True), release, files)
        return commit, "it was there already"
    api.create_branch(repository, branch=branch, exist_ok=True)
    head = api.model_info(repository, revision=branch)
    paths = {ref.name: release.fetch(ref, folder / ref.name) for ref in files}
    known = [one.rfilename for one in head.siblings or []]
    gone = [name for name in known if name.startswith(_VARYING) and name not in paths]
    added = [CommitOperationAdd(name, path) for name, path in paths.items()]
    made = api.create_commit(
        repository,
        [*map(CommitOperationDelete, gone), *added],
        commit_message=f"{release.name} {version}",
        revision=branch,
        parent_commit=head.sha,
    )
    commit = str(made.oid)
    _compare(api.model_info(repository, revision=commit, files_metadata=True), release, files)
    api.create_tag(repository, tag=version, revision=commit)
    return commit, f"tagged {version} on {branch}"


def _compare(commit: Any, release: Release, files: Sequence[FileRef]) -> None:
    """Refuse a commit that lacks a file or has other bytes, by the hashes that the hub states."""
    from huggingface_hub.utils.sha import git_hash

    there = {one.rfilename: one for one in commit.siblings or []}
    for ref in files:
        stated, ours = there.get(ref.name), ref.sha256
        if stated and not stated.lfs:
            # A small file, which git knows by a hash that a release does not state.
            ours = git_hash(release.store.get_bytes(release.store.key_of(ref.uri), sha256=ours))
        if stated is None or ours != (stated.lfs.sha256 if stated.lfs else stated.blob_id):
            raise UserError(
                f"hf://{commit.id} has another {ref.name} in {commit.sha} than the release; delete "
                f"the tag {release.version} there if it has one, or push to another repository"
            )


def push_to_registry(
    to: Destination, release: Release, files: Sequence[FileRef], folder: Path
) -> tuple[str, str]:
    """Push the layers that the registry lacks, then the manifest under its tag.

    Returns:
        The manifest's digest, which is the same for the same version, and how it came there.
    """
    config = _config(release, files)
    manifest = _manifest(files, config)
    digest, tag = _digest(manifest), to.label or release.version
    with _Registry(to) as registry:
        there = registry.find(f"manifests/{tag}")
        if there == digest:
            return digest, "it was there already"
        if there is not None:
            raise UserError(
                f"{to.uri} has a tag {tag} of another artifact ({there}); name another tag, or "
                "delete that one there"
            )
        missing = [ref for ref in files if registry.find(f"blobs/sha256:{ref.sha256}") is None]
        for ref in missing:
            path = release.fetch(ref, folder / ref.name)
            registry.upload(f"sha256:{ref.sha256}", path)
            path.unlink()
        (folder / "config").write_bytes(config)
        registry.upload(_digest(config), folder / "config")
        kind = {"Content-Type": _MANIFEST}
        registry.call("PUT", f"manifests/{tag}", (201,), content=manifest, headers=kind)
    return digest, f"{len(missing)} of {len(files)} files were sent"


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _manifest(files: Sequence[FileRef], config: bytes) -> bytes:
    def descriptor(kind: str, digest: str, size: int) -> dict[str, Any]:
        return {"mediaType": f"{_MODEL}.{kind}", "digest": digest, "size": size}

    layers = [
        descriptor(f"{_kind(ref.name)}.v1.raw", f"sha256:{ref.sha256}", ref.bytes)
        | {"annotations": dict.fromkeys(_PATH, ref.name)}
        for ref in files
    ]
    document = {
        "schemaVersion": 2,
        "mediaType": _MANIFEST,
        "artifactType": f"{_MODEL}.manifest.v1+json",
        "config": descriptor("config.v1+json", _digest(config), len(config)),
        "layers": layers,
    }
    return json.dumps(document).encode()


def _kind(name: str) -> str:
    """Return the kind of a layer, as the media types name it."""
    if not name.startswith((*SERVED, ADAPTER_FOLDER, "tokenizer.json")):
        return "doc"
    return "weight" if PurePosixPath(name).suffix in _WEIGHTS else "weight.config"


def _config(release: Release, files: Sequence[FileRef]) -> bytes:
    """Describe the model; what the release does not state is left out."""
    manifest = release.manifest
    config, choice = (json.loads(release.read(n) or b"{}") for n in (CONFIG_FILE, CHOICE.name))
    declared = config.get("governance", {}).get("model_license")
    license_ = declared or manifest.base_model.get("license")
    descriptor = {
        "createdAt": manifest.created_at,
        "name": manifest.name,
        "version": manifest.version,
        "revision": manifest.code.get("commit"),
        "licenses": [license_] if license_ else None,
    }
    document = {
        "descriptor": {name: value for name, value in descriptor.items() if value},
        "config": {
            "format": "gguf" if release.find(MODEL_FILE) else "safetensors",
            "quantization": choice.get("variant", "unknown"),
        },
        "modelfs": {"type": "layers", "diffIds": [f"sha256:{ref.sha256}" for ref in files]},
    }
    return json.dumps(document).encode()


class _Registry(httpx.Client):
    """A repository of a registry."""

    def __init__(self, to: Destination) -> None:
        self._to = to
        plain = to.scheme == "oci+http" or to.owner.split(":")[0] in ("localhost", "127.0.0.1")
        base = f"http{'' if plain else 's'}://{to.owner}/v2/{to.repository}/"
        super().__init__(base_url=base, timeout=_TIMEOUT, auth=_Login(to, base))

    def find(self, path: str) -> str | None:
        """Return the digest of a blob or manifest, None if it is not there."""
        # A registry may keep its blobs elsewhere and name the place.
        answer = self.call("HEAD", path, (200, 307, 404), headers={"Accept": _MANIFEST})
        known = answer.headers.get("Docker-Content-Digest", "of an unknown digest")
        return None if answer.status_code == 404 else str(known)

    def upload(self, digest: str, path: Path) -> None:
        """Send a blob, which the registry compares with its digest."""
        begun = self.call("POST", "blobs/uploads/", (202,))
        place = begun.url.join(begun.headers.get("Location", ""))
        kind = {"Content-Type": "application/octet-stream"}
        with path.open("rb") as content:
            whole = place.copy_merge_params({"digest": digest})
            self.call("PUT", whole, (201,), content=content, headers=kind)

    def call(
        self, method: str, url: httpx.URL | str, accept: Sequence[int], **more: Any
    ) -> httpx.Response:
        """Send a request; an answer that is not accepted is raised."""
        uri = self._to.uri
        try:
            answer = self.request(method, url, **more)
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            why = first_line(error)
            raise RetryableError(f"{uri}: the registry can't be reached ({why})") from None
        status = answer.status_code
        if status in accept:
            return answer
        # Without its own words, which may repeat what it was sent.
        why = f"{uri}: the registry answers {status} to {method}"
        if status in (401, 403):
            why += (
                f": the credentials for {self._to.owner} are missing or wrong, or lack this right"
            )
        raise (RetryableError if status == 429 or status >= 500 else UserError)(why)


class _Login(httpx.Auth):
    """Answer a registry's challenge by user and password, or by a token that it sells for them."""

    requires_response_body = True

    def __init__(self, to: Destination, base: str) -> None:
        self._to, self._base, self._header = to, httpx.URL(base), ""

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Send a request, and once more after a challenge."""
        # An upload may lead to another server, whose address has all that it needs.
        ours = request.url.netloc == self._base.netloc
        if self._header and ours:
            request.headers["Authorization"] = self._header
        answer = yield request
        if answer.status_code != 401 or not ours:
            return
        challenge = answer.headers.get("WWW-Authenticate", "")
        asked = parse_keqv_list(parse_http_list(challenge.partition(" ")[2]))
        password = credentials(self._to.owner)
        self._header = f"Basic {password}" if password else ""
        if challenge.lower().startswith("bearer"):
            realm = httpx.URL(asked.get("realm", ""))
            if realm.scheme != self._base.scheme:
                raise UserError(f"{self._to.uri}: it asks for a password at {realm.host} by HTTP")
            scope = f"repository:{self._to.repository}:pull,push"
            params = {"service": asked.get("service", ""), "scope": scope}
            head = {"Authorization": self._header} if password else {}
            bought = yield httpx.Request("GET", realm, params=params, headers=head)
            content = bought.json() if bought.is_success else {}
            self._header = f"Bearer {content.get('token') or content.get('access_token')}"
        request.headers["Authorization"] = self._header
        yield request


def credentials(host: str) -> str:
    """Return user and password for a registry in base64, empty if Docker keeps none.

    `DOCKER_AUTH_CONFIG` has the content of Docker's `config.json`, `DOCKER_CONFIG` names its
    folder.
    """
    path = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker") / "config.json"
    text = os.environ.get("DOCKER_AUTH_CONFIG") or (path.read_text() if path.is_file() else "{}")
    try:
        config = json.loads(text)
        helper = config.get("credHelpers", {}).get(host) or config.get("credsStore")
        if not helper:
            return str(config.get("auths", {}).get(host, {}).get("auth", ""))
        command = [f"docker-credential-{helper}", "get"]
        done = subprocess.run(command, input=host, capture_output=True, text=True, check=True)
        found = json.loads(done.stdout)
        return base64.b64encode(f"{found['Username']}:{found['Secret']}".encode()).decode()
    except (ValueError, AttributeError, KeyError, OSError, subprocess.CalledProcessError):
        raise UserError(
            f"the credentials for {host} can't be read: DOCKER_AUTH_CONFIG or {path} is not "
            "Docker's JSON, or its credential helper fails"
        ) from None
