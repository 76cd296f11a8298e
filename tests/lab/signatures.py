"""Signed releases, and what somebody can forge who may write to the store and not sign."""

import subprocess
from pathlib import Path
from typing import Any

from tuneline.artifacts.governance import Manifest
from tuneline.artifacts.release_log import Released
from tuneline.artifacts.releases import LINEAGE_EVIDENCE, LINEAGE_STATEMENTS
from tuneline.governance.release import signature
from tuneline.governance.release.pointer import last_move, read_pointer, record
from tuneline.governance.release.signature import enveloped, plain


def key_pair(folder: Path, name: str) -> tuple[Path, Path]:
    """Make a key by OpenSSL, as the documentation says."""
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    make = "openssl ecparam -name prime256v1 -genkey -noout -out".split()
    subprocess.run([*make, str(private)], check=True)
    subprocess.run(
        ["openssl", "ec", "-in", str(private), "-pubout", "-out", str(public)],
        check=True,
        capture_output=True,
    )
    return private, public


class Writer:
    """Writes versions of a model into a store, with all that fits and no step of a run."""

    def __init__(
        self, store: Any, private: Path, scratch: Path, name: str = "model", genuine: str = "test"
    ) -> None:
        scratch.mkdir(exist_ok=True)
        self.store, self.private, self.scratch = store, private, scratch
        self.name, self.genuine = name, genuine

    def signs(self, files: dict[str, bytes]) -> bytes:
        """Sign files, as the owner of the key does."""
        folder = self.scratch / f"{len(list(self.scratch.iterdir()))}"
        paths = {name: folder / name for name in files}
        for name, path in paths.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(files[name])
        return signature.sign(paths, self.private, folder).read_bytes()

    def lays(self, version: str, files: dict[str, bytes], sig: bytes | None = None) -> str:
        """Write a version and a signature; return the hash of its manifest."""
        folder = f"models/{self.name}/{version}"
        stated = [
            {"name": file, "sha256": self.store.put_bytes(f"{folder}/{file}", content).sha256}
            | {"bytes": len(content)}
            for file, content in files.items()
        ]
        said = signature.public_part(self.private)
        manifest = Manifest(name=self.name, version=version, signature=said, files=stated)
        raw = manifest.model_dump_json(by_alias=True).encode()
        sig = sig or self.signs({**files, "manifest.json": raw})
        self.store.put_bytes(f"{folder}/model.sig", sig)
        return self.store.put_bytes(f"{folder}/manifest.json", raw).sha256

    def releases(self, version: str, sha256: str, lineage: str | None = None) -> None:
        """Log a release, and point to it."""
        pointed = read_pointer(self.store, self.name)
        previous, follows = last_move(pointed)
        event = Released(
            previous_version=previous, follows=follows, run="r", lineage_sha256=lineage
        )
        record(pointed, version, sha256, [event])

    def promotes(self, version: str, files: dict[str, bytes]) -> None:
        """Write, sign and release a version as `lineage` and `promote` do."""
        folder, sha256 = f"models/{self.name}/{version}", self.lays(version, files)
        evidence = self.store.put_bytes(f"{folder}/{LINEAGE_EVIDENCE}", b"{}").sha256
        read = [{"name": LINEAGE_EVIDENCE, "digest": {"sha256": evidence}}]
        subject = [{"name": "manifest.json", "digest": {"sha256": sha256}}]
        statement = {"subject": subject, "predicate": {"configuration": read}}
        raw = enveloped(plain(statement), self.private)
        ref = self.store.put_bytes(f"{folder}/{LINEAGE_STATEMENTS[1]}", raw)
        self.releases(version, sha256, ref.sha256)


def over_other_files(writer: Writer, version: str) -> str:
    readme = {"README.md": b"A model."}
    evil = {"model.gguf": b"GGUF evil", **readme}
    writer.releases(version, writer.lays(version, evil, writer.signs(readme)))
    return "does not sign this release: it does not cover manifest.json, model.gguf"


def over_one_file_more(writer: Writer, version: str) -> str:
    files = {"model.gguf": b"GGUF"}
    more = writer.signs({**files, "README.md": b"A model."})
    writer.releases(version, writer.lays(version, files, more))
    return "it covers, beyond the release, README.md"


def never_promoted(writer: Writer, version: str) -> str:
    """`lineage` has signed it, and `promote` has refused it."""
    writer.releases(version, writer.lays(version, {"model.gguf": b"GGUF bad"}))
    return f"{version} was released without a statement of lineage"


def with_the_statement_of_another_version(writer: Writer, version: str) -> str:
    sha256 = writer.lays(version, {"model.gguf": b"GGUF bad"})
    folder, ours = f"models/{writer.name}", LINEAGE_STATEMENTS[1]
    raw = writer.store.get_bytes(f"{folder}/{writer.genuine}/{ours}")
    lineage = writer.store.put_bytes(f"{folder}/{version}/{ours}", raw).sha256
    writer.releases(version, sha256, lineage)
    return "is about another manifest"


def copied(writer: Writer, version: str) -> str:
    """Another signed version under this one's name."""
    folder = f"models/{writer.name}"
    for key in list(writer.store.keys(f"{folder}/{writer.genuine}")):
        if not key.endswith("release.jsonl"):
            raw = writer.store.get_bytes(key)
            writer.store.put_bytes(key.replace(f"/{writer.genuine}/", f"/{version}/"), raw)
    manifest = writer.store.find(f"{folder}/{version}/manifest.json")
    statement = writer.store.find(f"{folder}/{version}/{LINEAGE_STATEMENTS[1]}")
    writer.releases(version, manifest.sha256, statement.sha256)
    return f"is the manifest of {writer.name} {writer.genuine}"


FORGERIES = (
    over_other_files,
    over_one_file_more,
    never_promoted,
    with_the_statement_of_another_version,
    copied,
)
