"""`make compose-env`: the secrets of docker-compose.yml, each at random, into .env (readable by its owner only).

What is there already stays, so that it may be called again after an update that needs one more.
"""

import os
import secrets
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

SECRETS: Mapping[str, Callable[[], str]] = {
    "POSTGRES_PASSWORD": lambda: secrets.token_hex(24),  # stands in URLs, so letters and digits only
    "S3_ACCESS_KEY": lambda: secrets.token_hex(10),
    "S3_SECRET_KEY": lambda: secrets.token_hex(24),
    "RAY_TOKEN": lambda: secrets.token_hex(32),
    "CHAINRULE_ADMIN_KEY": lambda: f"crk_{secrets.token_urlsafe(32)}",
}


def complete(text: str) -> tuple[str, list[str]]:
    """``text`` of an env file with the secrets that it lacks at its end, and their names."""
    there = {name.strip() for name, separator, value in map(_parts, text.splitlines()) if separator and value.strip()}
    missing = [name for name in SECRETS if name not in there]
    kept = text if not text or text.endswith("\n") else text + "\n"
    return kept + "".join(f"{name}={SECRETS[name]()}\n" for name in missing), missing


def _parts(line: str) -> tuple[str, str, str]:
    return line.partition("=")


def main(path: Path) -> None:
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    after, made = complete(before)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        os.fchmod(file.fileno(), 0o600)  # it may have been there, readable by others
        file.write(after)
    print(f"{path}: made {', '.join(made)}" if made else f"{path}: nothing was missing")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else ".env"))
