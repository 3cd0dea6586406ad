"""`python3 -m deploy.kubernetes.make_secrets FILE`: the keys of the Secret `chainrule`, in an env file that only its owner can read.

What is there already stays: addresses of databases of your own, and the keys of your bucket, are put there first. The rest is made
at random; the databases' addresses are those of overlays/all-in-one.
"""

import sys
from pathlib import Path

from deploy import compose_env

DATABASES = {"CHAINRULE_DATABASE_URL": "chainrule", "MLFLOW_DATABASE_URL": "mlflow"}


def complete(text: str) -> str:
    """``text`` of an env file with what it lacks at its end."""
    text, _ = compose_env.complete(text)
    values = {key.strip(): value.strip() for key, _, value in (line.partition("=") for line in text.splitlines())}
    server = f"postgresql+psycopg://chainrule:{values['POSTGRES_PASSWORD']}@postgres:5432"
    return text + "".join(f"{key}={server}/{name}\n" for key, name in DATABASES.items() if not values.get(key))


def main(path: Path) -> None:
    compose_env.main(path)
    path.write_text(complete(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
