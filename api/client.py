"""The Python client of the REST API.

    client = Client.from_environment()
    job = client.create_job({"name": "digits", "task": {...}})
    for event in client.follow_events(job["id"]):
        print(event["message"])

Answers are the JSON documents that the API describes at ``/docs``.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, urlsplit

import httpx

from api.client_files import Files
from api.home import Home

Document = dict[str, Any]
RETRIES, FIRST_PAUSE_SECONDS = 4, 0.3
TIMEOUT = httpx.Timeout(30.0, connect=5.0)
PLAN_TIMEOUT = httpx.Timeout(300.0, connect=5.0)
LONGEST_PAUSE_SECONDS = 5.0
STREAM_TIMEOUT = httpx.Timeout(10.0, read=60.0)  # the server sends a heartbeat every 15 s
PATIENCE_SECONDS, RECONNECT_SECONDS = 60.0, 0.5  # how long, and how often, a stream that broke is asked for again
BUSY = frozenset({429, 502, 503})


class ApiError(Exception):
    """The API refused. ``problems`` lists every problem of a refused job."""

    def __init__(self, status: int, error: Mapping[str, Any], request_id: str | None) -> None:
        self.status, self.request_id = status, request_id
        self.code: str = error.get("code") or "unknown"
        self.message: str = error.get("message") or f"HTTP status {status}"
        self.param: str | None = error.get("param")
        self.problems: list[Document] = error.get("problems") or []
        super().__init__(self.message)


class NoServiceError(Exception):
    """There is no service to talk to, or no key for it. ``str()`` is for people."""


class Client:
    def __init__(self, url: str, key: str, transport: httpx.BaseTransport | None = None) -> None:
        """Raises NoServiceError for what can be no address or no key."""
        self.url, key = url.strip().rstrip("/"), key.strip()
        if not re.fullmatch(r"[!-~]+", key):
            raise NoServiceError("the API key is empty or has characters that no key has")
        host = _host(self.url)
        if host is None:
            raise NoServiceError(f"{url!r} is no address of a service, such as http://127.0.0.1:8400")
        headers = {"authorization": f"Bearer {key}"}
        self._http = httpx.Client(
            base_url=self.url, headers=headers, timeout=TIMEOUT, transport=transport, trust_env=not _is_here(host)
        )

    @property
    def files(self) -> Files:
        return Files(self._request)

    @classmethod
    def from_environment(cls, home: Home | None = None) -> Self:
        """The service of $CHAINRULE_URL and $CHAINRULE_API_KEY; what is not set comes from the one that runs on the home."""
        home = home or Home()
        url, key = os.environ.get("CHAINRULE_URL"), os.environ.get("CHAINRULE_API_KEY")
        if not url:
            service = home.service()
            if service is None:
                raise NoServiceError(
                    f"no service runs on {home.path}; start one with `chainrule up`, or set CHAINRULE_URL and CHAINRULE_API_KEY"
                )
            url = service.url
        key = (key or "").strip() or home.admin_key()
        if not key:
            raise NoServiceError(f"no API key: set CHAINRULE_API_KEY ({home.path / 'admin.key'} cannot be read)")
        return cls(url, key)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    # --- jobs ---------------------------------------------------------------------------------------------------------

    def create_job(self, spec: Mapping[str, Any], idempotency_key: str | None = None) -> Document:
        """Posts a job. It is safe to retry, and is retried, because the key makes the second one the same job."""
        headers = {"idempotency-key": idempotency_key or uuid.uuid4().hex}
        return self._request("POST", "/v1/jobs", json=spec, headers=headers)

    def plan_job(self, spec: Mapping[str, Any]) -> Document:
        """What the job would take; nothing is created. ``computed`` says whether that could be found out; it takes some seconds."""
        return self._request("POST", "/v1/jobs", params={"dry_run": "true"}, json=spec, timeout=PLAN_TIMEOUT)

    def get_job(self, job_id: str) -> Document:
        return self._request("GET", _job(job_id))

    def list_jobs(self, *, limit: int = 20, after: str | None = None, status: str | None = None) -> Document:
        """One page, newest first: ``data``, ``has_more``, ``last_id``."""
        return self._request("GET", "/v1/jobs", params={"limit": limit, "after": after, "status": status})

    def cancel_job(self, job_id: str) -> Document:
        return self._request("POST", f"{_job(job_id)}/cancel")

    def kill_job(self, job_id: str) -> Document:
        return self._request("POST", f"{_job(job_id)}/kill")

    def pause_job(self, job_id: str) -> Document:
        return self._request("POST", f"{_job(job_id)}/pause")

    def resume_job(self, job_id: str, start: str | None = None) -> Document:
        """``start``: from which checkpoint, latest or healthy."""
        return self._request("POST", f"{_job(job_id)}/resume", json={"from": start} if start else None)

    def update_job(
        self,
        job_id: str,
        *,
        priority: int | None = None,
        metadata: Mapping[str, str] | None = None,
        workers: Mapping[str, int] | None = None,
        learning_rate: float | None = None,
        clip_norm: float | None = None,
    ) -> Document:
        """Changes what is given. ``workers``: ``{"count": 2}`` or ``{"min": 1, "max": 4}``. Rate and clipping: of a job that runs."""
        given = {
            "priority": priority,
            "metadata": metadata,
            "workers": workers,
            "optimizer": None if learning_rate is None else {"learning_rate": learning_rate},
            "training": None if clip_norm is None else {"clip_norm": clip_norm},
        }
        return self._request("PATCH", _job(job_id), json={k: value for k, value in given.items() if value is not None})

    # --- what a job tells ---------------------------------------------------------------------------------------------

    def events(self, job_id: str, *, after: str | int | None = None, limit: int = 100) -> Document:
        return self._request("GET", f"{_job(job_id)}/events", params={"after": after, "limit": limit, "order": "asc"})

    def attempts(self, job_id: str) -> Document:
        return self._request("GET", f"{_job(job_id)}/attempts")

    def workers(self, job_id: str, *, attempt: int | None = None, state: str | None = None) -> Document:
        """Those of all attempts, with when and why they ended."""
        return self._request("GET", f"{_job(job_id)}/workers", params={"attempt": attempt, "state": state})

    def metrics(self, job_id: str, *, keys: str | None = None, max_points: int | None = None) -> Document:
        return self._request("GET", f"{_job(job_id)}/metrics", params={"keys": keys, "max_points": max_points})

    def gradients(self, job_id: str, *, max_points: int | None = None) -> Document:
        return self._request("GET", f"{_job(job_id)}/gradients", params={"max_points": max_points})

    def step(self, job_id: str, step: int, *, max_samples: int | None = None) -> Document:
        """What came of a step (from 1), and which samples formed it on which worker."""
        return self._request("GET", f"{_job(job_id)}/steps/{step}", params={"max_samples": max_samples})

    def health(self, job_id: str, *, facts: bool = True) -> Document:
        """The verdict, open findings, what was raised and cleared before, facts, and what the watching costs."""
        return self._request("GET", f"{_job(job_id)}/health", params={} if facts else {"facts": "false"})

    def repairs(self, job_id: str) -> Document:
        """What was changed of the run while it trained, and what was found and is not repaired."""
        return self._request("GET", f"{_job(job_id)}/repairs")

    def undo_repair(self, job_id: str, number: int) -> Document:
        """Asks for it; an event tells when it is done."""
        return self._request("POST", f"{_job(job_id)}/repairs/{number}/undo")

    def quarantine(self, job_id: str) -> Document:
        """The training samples that the job leaves out, and since when."""
        return self._request("GET", f"{_job(job_id)}/quarantine")

    def change_quarantine(
        self, job_id: str, *, leave_out: Sequence[int | str] = (), take_in: Sequence[int | str] = ()
    ) -> Document:
        """Asks a running job for it; an event tells when it is done. Samples are indices, or names as ``step`` shows them."""
        given = {"leave_out": list(leave_out), "take_in": list(take_in)}
        return self._request(
            "POST", f"{_job(job_id)}/quarantine", json={k: value for k, value in given.items() if value}
        )

    def diagnosis(self, job_id: str) -> Document:
        """The run judged anew from what was recorded of it, and what would have been told while it ran."""
        return self._request("GET", f"{_job(job_id)}/diagnosis")

    def probes(
        self,
        job_id: str,
        *,
        statistics: str | None = None,
        layers: str | None = None,
        first_step: int | None = None,
        last_step: int | None = None,
        max_points: int | None = None,
    ) -> Document:
        """What was measured of every layer now and then. ``statistics``, ``layers``: names, separated by commas."""
        query = {"statistics": statistics, "layers": layers, "first_step": first_step, "last_step": last_step}
        return self._request("GET", f"{_job(job_id)}/probes", params=query | {"max_points": max_points})

    def histograms(
        self,
        job_id: str,
        layer: str,
        *,
        first_step: int | None = None,
        last_step: int | None = None,
        max_points: int | None = None,
    ) -> Document:
        """How large the elements of a layer's gradient were, at the steps that were probed."""
        query = {"layer": layer, "first_step": first_step, "last_step": last_step, "max_points": max_points}
        return self._request("GET", f"{_job(job_id)}/probes/histograms", params=query)

    def checkpoints(self, job_id: str) -> Document:
        return self._request("GET", f"{_job(job_id)}/checkpoints")

    def model_files(self, job_id: str) -> Document:
        return self._request("GET", f"{_job(job_id)}/model")

    def artifacts(
        self,
        job_id: str,
        *,
        step: int | None = None,
        after: str | None = None,
        limit: int = 100,
        order: str = "asc",
    ) -> Document:
        """One page of the files in which the job's task showed what its model did; with ``step`` only those after that one."""
        query = {"step": step, "after": after, "limit": limit, "order": order}
        return self._request("GET", f"{_job(job_id)}/artifacts", params=query)

    def download_artifact(self, job_id: str, path: str) -> bytes:
        """``path`` as listed. At most 32 MiB."""
        return self._answer("GET", f"{_job(job_id)}/artifacts/files/{quote(path)}").content

    def logs(self, job_id: str, *, rank: int | None = None, after: str | None = None, limit: int = 1000) -> Document:
        return self._request("GET", f"{_job(job_id)}/logs", params={"rank": rank, "after": after, "limit": limit})

    def follow_events(self, job_id: str, after: str | None = None) -> Iterator[Document]:
        """Events as they happen, until the job has ended; goes on without loss when the connection breaks."""
        return self._follow(f"{_job(job_id)}/events", "job.event", after, {})

    def follow_logs(self, job_id: str, rank: int | None = None) -> Iterator[Document]:
        return self._follow(f"{_job(job_id)}/logs", "log", None, {"rank": rank})

    # --- the service --------------------------------------------------------------------------------------------------

    def usage(self) -> Document:
        """What the jobs of the key's project have cost, in hours of workers."""
        return self._request("GET", "/v1/usage")

    def cluster(self) -> Document:
        return self._request("GET", "/v1/cluster")

    def cordon_node(self, node_id: str, reason: str | None = None) -> Document:
        """Takes a node out of use; needs an admin key. Returns the cluster."""
        return self._request("POST", f"{_node(node_id)}/cordon", json={} if reason is None else {"reason": reason})

    def uncordon_node(self, node_id: str) -> Document:
        return self._request("POST", f"{_node(node_id)}/uncordon")

    def schema(self) -> Document:
        return self._request("GET", "/v1/schema")

    # --- HTTP ---------------------------------------------------------------------------------------------------------

    def _request(self, method: str, path: str, **settings: Any) -> Document:
        return self._document(self._answer(method, path, **settings))

    def _answer(self, method: str, path: str, **settings: Any) -> httpx.Response:
        """Every request of this client may be sent twice: reading, saying how something should be, and creating something under a key."""
        if "params" in settings:
            settings["params"] = {key: value for key, value in settings["params"].items() if value is not None}
        pause = FIRST_PAUSE_SECONDS
        for attempt in range(RETRIES + 1):
            try:
                answer = self._http.request(method, path, **settings)
            except httpx.TransportError as error:
                if attempt == RETRIES:
                    raise NoServiceError(f"{self.url} does not answer: {error}") from error
            else:
                if answer.is_success:
                    return answer
                if answer.status_code not in BUSY or attempt == RETRIES:
                    raise self._refusal(answer)
                pause = max(pause, _retry_after(answer))
            time.sleep(pause)
            pause *= 2
        raise AssertionError("the last try returns or raises")

    def _document(self, answer: httpx.Response) -> Document:
        try:
            document = answer.json()
        except ValueError as error:
            raise NoServiceError(f"{self.url} is not a Chainrule service: its answer is no JSON") from error
        if not isinstance(document, dict):
            raise NoServiceError(f"{self.url} is not a Chainrule service: its answer is no JSON object")
        return document

    def _refusal(self, answer: httpx.Response) -> ApiError:
        try:
            error = answer.json()["error"]
        except (ValueError, KeyError, TypeError):
            error = None
        if not isinstance(error, dict):  # a proxy's page, or another service
            error = {"message": f"HTTP status {answer.status_code} from {answer.url}"}
        return ApiError(answer.status_code, error, answer.headers.get("x-request-id"))

    def _follow(self, path: str, name: str, position: str | None, params: Mapping[str, Any]) -> Iterator[Document]:
        wanted = {key: value for key, value in params.items() if value is not None}
        failing_since: float | None = None
        while True:
            headers = {"accept": "text/event-stream"} | ({"last-event-id": position} if position else {})
            problem: Exception = NoServiceError(f"{self.url} ends the stream again and again")
            try:
                with self._http.stream("GET", path, params=wanted, headers=headers, timeout=STREAM_TIMEOUT) as answer:
                    if answer.status_code != 200:
                        answer.read()
                        problem = self._refusal(answer)
                        if answer.status_code not in BUSY:
                            raise problem
                    else:
                        for kind, identity, data in server_sent_events(answer.iter_text()):
                            failing_since = None
                            position = identity or position
                            if kind == "done":
                                return
                            if kind == "error":
                                raise ApiError(500, json.loads(data)["error"], answer.headers.get("x-request-id"))
                            if kind == name:
                                yield json.loads(data)
            except httpx.TransportError as error:
                problem = NoServiceError(f"{self.url} does not answer any more: {error}")
            failing_since = failing_since or time.monotonic()
            if time.monotonic() - failing_since > PATIENCE_SECONDS:
                raise problem
            time.sleep(RECONNECT_SECONDS)


def server_sent_events(chunks: Iterable[str]) -> Iterator[tuple[str, str | None, str]]:
    """(event, id, data) of each message of a text/event-stream; comments, the heartbeats, are passed over."""
    kind, identity, data = "message", None, list[str]()
    for line in _lines(chunks):
        if not line:
            if data:
                yield kind, identity, "\n".join(data)
            kind, identity, data = "message", None, []
            continue
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            kind = value
        elif field == "id":
            identity = value
        elif field == "data":
            data.append(value)


def _lines(chunks: Iterable[str]) -> Iterator[str]:
    """Lines as the standard of event streams has them. ``iter_lines`` of httpx also breaks at U+2028 and others, which logs contain."""
    rest = ""
    for chunk in chunks:
        *lines, rest = re.split(r"\r\n|\n|\r(?!\Z)", rest + chunk)  # a last \r may be the first half of \r\n
        yield from lines


def _job(job_id: str) -> str:
    return f"/v1/jobs/{quote(job_id, safe='')}"


def _node(node_id: str) -> str:
    return f"/v1/cluster/nodes/{quote(node_id, safe='')}"


def _retry_after(answer: httpx.Response) -> float:
    """In seconds, within reason; 0 where the header is missing or a date."""
    try:
        return min(LONGEST_PAUSE_SECONDS, max(0.0, float(answer.headers.get("retry-after", "0"))))
    except ValueError:
        return 0.0


def _host(url: str) -> str | None:
    """None where it is no address of a web server."""
    try:
        parts = urlsplit(url)
        return parts.hostname if parts.scheme in ("http", "https") and parts.port != 0 else None
    except ValueError:  # half a bracket, a port that is no number
        return None


def _is_here(host: str) -> bool:
    """Whether that is this machine, to which no proxy of the environment leads."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
