"""The section `governance.keyless`: releases signed by an identity instead of a key."""

from __future__ import annotations

from pydantic import Field

from tuneline.config.section import Section


class KeylessConfig(Section):
    """Signatures by Sigstore: who signs, and where the token of that identity comes from."""

    identity: str = Field(
        min_length=1,
        description="The identity that signs, as the certificate names it: an e-mail address, or "
        "the address of a workflow; promote refuses a release that another one has signed.",
    )
    issuer: str = Field(
        min_length=1,
        description="The OpenID provider that vouches for it, such as "
        "`https://token.actions.githubusercontent.com`.",
    )
    token_env: str = Field(
        "SIGSTORE_ID_TOKEN",
        description="Variable that holds the identity token in the pod of lineage. Without it the "
        "token of the surroundings is taken, where CI or a cloud offers one.",
    )
    token_file: str | None = Field(
        None,
        description="File that holds the identity token instead, such as a projected token of a "
        "service account, which Kubernetes renews.",
    )
    trust_config: str | None = Field(
        None,
        description="Sigstore client trust configuration (JSON) of an instance of your own; null "
        "takes the public one.",
    )
