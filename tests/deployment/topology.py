"""The services of docker-compose.yml as real processes on hosts of their own: their commands, environment, users, volumes, networks, start order
and health checks are those of the file.

What an image of somebody else would do is done by the same or a like program that is installed here: Debian's Postgres, and moto for the S3 store.
"""

from __future__ import annotations

import collections
import json
import pwd
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.deployment.compose import Service, in_order
from tests.deployment.hosts import CHECKOUT, Host, Lan, Mount, User
from tests.deployment.images import Image
from tests.integration.databases import binaries

START_SECONDS = 240.0
RESTARTS = 2  # of one host, before the test fails
CLIENT = "client"  # a person's machine, which reaches what the file publishes
Command = list[str]


@dataclass(frozen=True)
class Substitute:
    """In place of an image that is not ours."""

    command: Command
    path: str
    user: User | None = None
    health: Command | None = None  # where the file's check needs a program of the image


class Topology:
    """``with`` it, everything runs, and is healthy as the file understands it."""

    def __init__(self, config: Mapping[str, Any], images: Mapping[str, Image], folder: Path, workers: int) -> None:
        self._services: dict[str, Service] = dict(config["services"])
        self._images, self.folder = images, folder
        self._volumes = {name: folder / "volumes" / name for name in config["volumes"]}
        for volume in self._volumes.values():
            volume.mkdir(parents=True)
        self._lan = Lan(config["networks"])
        self._copies = {"ray-worker": workers}  # as with --scale
        self._restarts: collections.Counter[str] = collections.Counter()
        self.hosts: dict[str, Host] = {}

    def __enter__(self) -> Topology:
        self._lan.__enter__()
        try:
            for name, service in self._services.items():
                for copy in self._hosts_of(name):
                    self.hosts[copy] = self._lan.host(copy, list(service["networks"]))
            self.hosts[CLIENT] = self._lan.host(CLIENT, ["control"])
            self._start_client()
            for name in in_order(self._services):
                self._wait_for_dependencies(name)
                for copy in self._hosts_of(name):
                    self.start(copy)
            for name in self._services:
                self._wait_until(
                    name, "service_healthy" if "healthcheck" in self._services[name] else "service_started"
                )
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._lan.__exit__()

    def start(self, host: str) -> None:
        """Again, for one that has ended: what `restart: unless-stopped` does."""
        service = self._services[_service_of(host, self._services)]
        image = self._images.get(service["image"])
        other = None if image else self._substitute(service)
        path = str(image.venv / "bin") if image else other.path if other else ""
        environment = {
            **(image.environment if image else {}),
            **{key: str(value) for key, value in service.get("environment", {}).items()},
            "PATH": f"{path}:/usr/bin:/bin",
            "HOME": "/tmp",
        }
        user = (other and other.user) or self._user(service)
        self.hosts[host].start(
            other.command if other else service["command"],
            environment,
            self.folder / "hosts" / host,
            user,
            self._mounts(service, image),
            service.get("shm_size", "64m").replace("gb", "g").replace("mb", "m"),
        )

    def wait_until_healthy(self, name: str) -> None:
        self._wait_until(name, "service_healthy")

    def command_line(self, *arguments: str, seconds: float = 180.0) -> subprocess.CompletedProcess[str]:
        """``chainrule`` as a person calls it, on the client's machine."""
        return self.hosts[CLIENT].run("chainrule", *arguments, seconds=seconds)

    def json(self, *arguments: str) -> Any:
        run = self.command_line(*arguments, "--json")
        assert run.returncode == 0, f"chainrule {' '.join(arguments)}: {run.stdout}{run.stderr}"
        return json.loads(run.stdout)

    def python(self, host: str, code: str) -> Any:
        """Last line that ``code`` prints on that host, as JSON."""
        run = self.hosts[host].run("python", "-c", code)
        assert run.returncode == 0, run.stderr
        return json.loads(run.stdout.splitlines()[-1])

    # --- one service --------------------------------------------------------------------------------------------------

    def _hosts_of(self, name: str) -> list[str]:
        count = self._copies.get(name)
        return [name] if count is None else [f"{name}-{number}" for number in range(1, count + 1)]

    def _start_client(self) -> None:
        image = self._images["chainrule-control"]
        key = self._services["api"]["environment"]["CHAINRULE_ADMIN_KEY"]
        environment = {
            "PATH": f"{image.venv / 'bin'}:/usr/bin:/bin",
            "HOME": "/tmp",
            "CHAINRULE_URL": "http://api:8400",
            "CHAINRULE_API_KEY": key,
        }
        mounts = [Mount(CHECKOUT / "examples", "/srv/examples", True), Mount(self.folder, "/srv/jobs", True)]
        self.hosts[CLIENT].start(
            ["sleep", "infinity"], environment, self.folder / "hosts" / CLIENT, User(10001, 10001), mounts
        )

    def _user(self, service: Service) -> User:
        """As Docker runs it: without the capabilities that the file drops."""
        uid, _, gid = service["user"].partition(":")
        added = tuple(capability.lower() for capability in service.get("cap_add", []))
        assert service["cap_drop"] == ["ALL"], service
        return User(int(uid), int(gid), added)

    def _mounts(self, service: Service, image: Image | None) -> list[Mount]:
        found = [Mount(image.workdir, image.target, True)] if image else []
        for volume in service.get("volumes", []):
            source, target, mode = volume.split(":")
            if target.startswith("/srv/"):  # the rest is of images that are not ours
                found.append(Mount(self._volumes.get(source, Path(source)), target, mode == "ro"))
        return found

    def _substitute(self, service: Service) -> Substitute:
        if service["image"].startswith("postgres:"):
            return self._postgres(service)
        assert service["image"].startswith("versity/versitygw:"), service["image"]
        port = service["command"][service["command"].index("--port") + 1].lstrip(":")
        return Substitute(
            [str(Path(sys.prefix) / "bin" / "moto_server"), "--host=0.0.0.0", f"--port={port}"],
            str(Path(sys.prefix) / "bin"),
            health=["python", "-c", f"import socket; socket.create_connection(('127.0.0.1', {port}), 3)"],
        )

    def _postgres(self, service: Service) -> Substitute:
        """As the image's entry point does it: makes the server's files at the first start, its database, and runs the scripts that are mounted."""
        found = binaries()
        assert found is not None, "no Postgres server is installed"
        owner = pwd.getpwnam(service["user"])
        volumes = dict(volume.split(":")[:2][::-1] for volume in service["volumes"])
        data = self._volumes[volumes["/var/lib/postgresql/data"]]
        scripts = self.folder / "postgres-scripts"
        if not scripts.exists():
            shutil.copytree(volumes["/docker-entrypoint-initdb.d"], scripts)
        for path in (data, self.folder / "postgres-sockets"):
            path.mkdir(exist_ok=True)
            shutil.chown(path, owner.pw_uid, owner.pw_gid)
        data.chmod(0o700)
        shell = f"""
            set -eu
            options="-D {data} -c unix_socket_directories={self.folder / "postgres-sockets"} -c fsync=off"
            if [ ! -e {data}/PG_VERSION ]; then
                echo "$POSTGRES_PASSWORD" > {self.folder / "postgres-sockets"}/password
                initdb -D {data} --username="$POSTGRES_USER" --auth=scram-sha-256 --no-sync --encoding=UTF8 --locale=C \\
                    --pwfile={self.folder / "postgres-sockets"}/password
                rm {self.folder / "postgres-sockets"}/password
                echo "host all all all scram-sha-256" >> {data}/pg_hba.conf
                pg_ctl -w -D {data} -o "$options -c listen_addresses=127.0.0.1" start
                export PGHOST=127.0.0.1 PGUSER="$POSTGRES_USER" PGPASSWORD="$POSTGRES_PASSWORD"
                createdb "$POSTGRES_DB"
                for script in {scripts}/*.sql; do psql --dbname="$POSTGRES_DB" --set=ON_ERROR_STOP=1 --file="$script"; done
                pg_ctl -w -D {data} stop
            fi
            exec postgres $options -c listen_addresses='*'
        """
        return Substitute(["sh", "-c", shell], str(found), User(owner.pw_uid, owner.pw_gid))

    # --- start order --------------------------------------------------------------------------------------------------

    def _wait_for_dependencies(self, name: str) -> None:
        for other, how in self._services[name].get("depends_on", {}).items():
            self._wait_until(other, how["condition"])

    def _wait_until(self, name: str, condition: str) -> None:
        deadline = time.monotonic() + START_SECONDS
        for host in self._hosts_of(name):
            while not self._is(name, self.hosts[host], condition):
                assert time.monotonic() < deadline, f"{host} is not {condition}: {self.hosts[host].tail()}"
                time.sleep(0.5)

    def _is(self, name: str, host: Host, condition: str) -> bool:
        service = self._services[name]
        if condition == "service_started":
            return True
        self._start_again_if_allowed(service, host)
        if condition == "service_completed_successfully":
            assert host.status() in (None, 0), f"{host.name} ended with {host.status()}: {host.tail()}"
            return host.status() == 0
        assert condition == "service_healthy", condition
        assert host.status() is None, f"{host.name} ended with {host.status()}: {host.tail()}"
        other = None if service["image"] in self._images else self._substitute(service)
        check = (other and other.health) or _check_of(service)
        return host.run(*check).returncode == 0

    def _start_again_if_allowed(self, service: Service, host: Host) -> None:
        """Now and then: on a busy machine Ray's head may give up waiting for its own parts."""
        failed = host.status() not in (None, 0)
        if (
            failed
            and service.get("restart") in ("on-failure", "unless-stopped")
            and self._restarts[host.name] < RESTARTS
        ):
            self._restarts[host.name] += 1
            self.start(host.name)


def _check_of(service: Service) -> Sequence[str]:
    how, *command = map(str, service["healthcheck"]["test"])
    assert how == "CMD", service["healthcheck"]
    return command


def _service_of(host: str, services: Mapping[str, Service]) -> str:
    return host if host in services else host.rpartition("-")[0]
