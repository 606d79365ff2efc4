"""JSON Web Tokens (RFC 7519), through PyJWT: signed by whoever holds the key of a file.

The key in the file decides the algorithm, never the token: that a public key is taken for a shared
secret is the best known attack on JWT (RFC 8725, section 3.1). Needs the extra `auth`.
"""

import dataclasses
from pathlib import Path
from typing import Any

SHORTEST_SECRET = 32  # bytes, for HS256 (RFC 7518, section 3.2)
LEEWAY = 30.0  # seconds that two clocks may differ
LONGEST_SUBJECT = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class WebTokens:
    """Checks tokens against one key.

    Attributes:
      key: a public key object of `cryptography`, or the bytes of a shared secret.
      algorithms: those that fit the key.
      audience, issuer: what `aud` and `iss` have to be; None asks for nothing.
    """

    key: Any
    algorithms: tuple[str, ...]
    audience: str | None = None
    issuer: str | None = None

    def subject(self, token: str) -> str | None:
        """Who a token names as `sub`; None when it is not valid: forged, expired, for somebody else."""
        import jwt

        required = ["exp", "sub"]
        required += ["aud"] if self.audience is not None else []
        required += ["iss"] if self.issuer is not None else []
        try:
            claims = jwt.decode(
                token,
                self.key,
                algorithms=list(self.algorithms),
                audience=self.audience,
                issuer=self.issuer,
                leeway=LEEWAY,
                options={"require": required, "verify_aud": self.audience is not None},
            )
        except jwt.PyJWTError:
            return None
        subject = claims["sub"]
        return subject if subject and len(subject) <= LONGEST_SUBJECT and subject.isprintable() else None


def load_web_tokens(path: Path, *, audience: str | None = None, issuer: str | None = None) -> WebTokens:
    """The checker for the key in a file: a PEM public key (RSA, Ed25519, Ed448), or a secret as it is.

    Whitespace around a secret does not count. Raises OSError, ImportError without the extra `auth`, or
    ValueError for a key that cannot be used; none shows the file's content.
    """
    try:
        import jwt  # noqa: F401
        from cryptography.hazmat.primitives.asymmetric import ed448, ed25519, rsa
        from cryptography.hazmat.primitives.serialization import load_pem_public_key
    except ImportError as error:
        raise ImportError(f'--jwt_key_file needs PyJWT: pip install "tpustream[auth]" ({error})') from error
    raw = path.read_bytes()
    if b"-----BEGIN" not in raw:
        secret = raw.strip()
        if len(secret) < SHORTEST_SECRET:
            raise ValueError(f"{path}: wanted a secret of {SHORTEST_SECRET} bytes or more, got {len(secret)}")
        return WebTokens(key=secret, algorithms=("HS256", "HS384", "HS512"), audience=audience, issuer=issuer)
    if b"PRIVATE KEY" in raw:
        raise ValueError(f"{path}: wanted the public key, got a private one, which a server must not have")
    try:
        key = load_pem_public_key(raw)
    except ValueError as error:
        raise ValueError(f"{path}: wanted a public key in PEM form: {error}") from None
    if isinstance(key, rsa.RSAPublicKey):
        algorithms = ("RS256", "RS384", "RS512")
    elif isinstance(key, ed25519.Ed25519PublicKey | ed448.Ed448PublicKey):
        algorithms = ("EdDSA",)
    else:
        raise ValueError(f"{path}: wanted an RSA or Ed25519 key, got {type(key).__name__}")
    return WebTokens(key=key, algorithms=algorithms, audience=audience, issuer=issuer)
