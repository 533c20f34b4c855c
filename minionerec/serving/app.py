"""The HTTP side of the server: what is asked, refused, counted and answered.

An answer is made from one version of the catalogue, taken when the request has been read. Every
refusal is ``{"error": "one line"}``.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from minionerec.errors import UserError
from minionerec.serving.batcher import Batcher, Full
from minionerec.serving.bodies import (
    Body,
    RecommendBody,
    Refused,
    ReloadBody,
    one_line,
    parse,
)
from minionerec.serving.fuser import Ranked
from minionerec.serving.metrics import Metrics
from minionerec.serving.served import Question, Served, Versions
from minionerec.serving.settings import ServerSettings

Handler = Callable[[Request], Awaitable[Any]]
CLOSED = 499  # nginx's code for a client that has gone


def make_app(versions: Versions, settings: ServerSettings, api_key: str | None = None) -> FastAPI:
    """The application.

    Args:
        versions: what is served.
        settings: limits and waits.
        api_key: what requests must carry as ``X-API-Key``; None: nothing.
    """
    metrics = Metrics()
    server = Server(versions, settings, metrics, api_key)
    app = FastAPI(
        title="MiniOneRec",
        description=(
            "Recommendations from a generative model. Every answer is made from one version of the "
            'catalogue, which it names. Mistakes are answered with `{"error": "one line"}`.'
        ),
        version="1",
        lifespan=server.lifespan,
        redirect_slashes=False,
    )
    app.state.server = server
    app.add_exception_handler(HTTPException, server.other_path)
    routes: list[tuple[str, str, Handler, type[Body] | None]] = [
        ("POST", "/recommend", server.recommend, RecommendBody),
        ("GET", "/catalogue", server.catalogue, None),
        ("POST", "/catalogue/reload", server.reload, ReloadBody),
        ("POST", "/catalogue/rollback", server.rollback, None),
        ("GET", "/health", server.health, None),
        ("GET", "/ready", server.ready, None),
        ("GET", "/metrics", server.metrics_page, None),
    ]
    for method, path, handler, body in routes:
        app.add_api_route(
            path,
            server.answering(path, handler),
            methods=[method],
            summary=(handler.__doc__ or "").splitlines()[0],
            openapi_extra=described(body),
        )
    return app


def described(body: type[Body] | None) -> dict[str, Any]:
    """What the page about the interface says of a body."""
    if body is None:
        return {}
    content = {"application/json": {"schema": body.model_json_schema()}}
    return {"requestBody": {"required": True, "content": content}}


class Server:
    """The handlers, and what they share."""

    def __init__(
        self,
        versions: Versions,
        settings: ServerSettings,
        metrics: Metrics,
        api_key: str | None,
    ):
        self.versions = versions
        self.settings = settings
        self.metrics = metrics
        self._api_key = api_key
        self._is_ready = False
        self._batcher: Batcher | None = None

    @contextlib.asynccontextmanager
    async def lifespan(self, _app: FastAPI) -> AsyncIterator[None]:
        """Start the search; at the end answer what waits."""
        settings = self.settings
        batcher = Batcher(
            settings.max_batch,
            settings.max_wait_ms / 1e3,
            settings.max_waiting,
            self.metrics.batch_size.observe,
        )
        self._batcher = batcher
        # The search's own tables are made before anybody waits for them
        served = self.versions.current
        first = RecommendBody(histories=[served.item_ids[:1]], k=1)
        await asyncio.gather(*batcher.ask(served.questions(first)))
        self._note_version(served)
        self._is_ready = True
        try:
            yield
        finally:
            self._is_ready = False
            await run_in_threadpool(batcher.close)

    # --------------------------------------------------------------------------------- handlers

    async def recommend(self, request: Request) -> Response:
        """The next items for each history, best first."""
        self._check_key(request)
        start = time.perf_counter()
        body = parse(RecommendBody, await self._read(request))
        served = self.versions.current
        most = served.recommender.num_beams
        if body.k > most:
            raise Refused(422, "body", f"body.k: got {body.k}, expected at most {most}")
        if body.allow is None and not body.deny and not body.where:
            questions = served.questions(body)
        else:
            # A filter over many items takes milliseconds, which others need not wait for
            questions = await run_in_threadpool(served.questions, body)
        lists = await self._search(questions)
        content = await self._content(served, body, questions, lists)
        self.metrics.latency.observe(time.perf_counter() - start)
        return content

    async def catalogue(self, request: Request) -> dict[str, Any]:
        """What is served: version, digest, number of items, run and checkpoint."""
        self._check_key(request)
        return about(self.versions.current)

    async def reload(self, request: Request) -> dict[str, Any]:
        """Serve the run as it is on the disk now, or the run called ``name`` beside it.

        Requests that are being answered end on the version that they began with.
        """
        self._check_key(request)
        body = parse(ReloadBody, await self._read(request))
        return await self._swap(self.versions.reload, body.name)

    async def rollback(self, request: Request) -> dict[str, Any]:
        """Serve the version before this one again."""
        self._check_key(request)
        return await self._swap(self.versions.rollback)

    async def health(self, _request: Request) -> dict[str, Any]:
        """Whether the process lives."""
        return {"status": "ok"}

    async def ready(self, _request: Request) -> dict[str, Any]:
        """Whether requests are answered; 503 while the server starts or ends."""
        is_searching = self._batcher is not None and self._batcher.is_alive
        if not (self._is_ready and is_searching):
            raise Refused(503, "not_ready", "the server is starting or ending")
        return {"status": "ready"}

    async def metrics_page(self, _request: Request) -> Response:
        """Counters and histograms for Prometheus."""
        if self._batcher is not None:
            self.metrics.waiting.set(self._batcher.waiting)
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")

    async def other_path(self, request: Request, error: Exception) -> Response:
        """Paths and methods that there are not."""
        status = error.status_code if isinstance(error, HTTPException) else 500
        self.metrics.requests.labels("other", str(status)).inc()
        self.metrics.errors.labels("path").inc()
        text = f"{request.method} {request.url.path[:80]}: there is no such path or method"
        return refusal(status, f"{text}; see /docs")

    def answering(self, path: str, handler: Handler) -> Handler:
        """A handler that never raises, and whose answers are counted."""

        async def answer(request: Request) -> Response:
            """One response, also for what was refused or went wrong."""
            try:
                content = await handler(request)
                response = content if isinstance(content, Response) else as_json(content)
            except Refused as error:
                self.metrics.errors.labels(error.reason).inc()
                response = refusal(error.status, str(error))
            except UserError as error:
                self.metrics.errors.labels("unknown").inc()
                response = refusal(422, str(error))
            except ClientDisconnect:
                self.metrics.errors.labels("client_gone").inc()
                response = refusal(CLOSED, "the client has gone")
            self.metrics.requests.labels(path, str(response.status_code)).inc()
            return response

        answer.__doc__ = handler.__doc__
        return answer

    # ------------------------------------------------------------------------------------ pieces

    def _check_key(self, request: Request) -> None:
        if self._api_key is None:
            return
        given = request.headers.get("x-api-key", "")
        if not hmac.compare_digest(given.encode(), self._api_key.encode()):
            raise Refused(401, "key", "the header X-API-Key is missing or wrong")

    async def _read(self, request: Request) -> bytes:
        """The body, as long as it is not too long and does not take too long."""
        most = self.settings.max_body_bytes
        chunks = []
        length = 0
        try:
            async with asyncio.timeout(self.settings.timeout_s):
                async for chunk in request.stream():
                    length += len(chunk)
                    if length > most:
                        text = f"body: more than {most:,} bytes"
                        raise Refused(413, "body_size", f"{text}; use recommend.py for many users")
                    chunks.append(chunk)
        except TimeoutError:
            raise Refused(408, "slow_body", "body: did not arrive in time") from None
        return b"".join(chunks)

    async def _search(self, questions: list[Question]) -> list[Ranked]:
        batcher = self._batcher
        if batcher is None or not self._is_ready:
            raise Refused(503, "not_ready", "the server is starting or ending")
        try:
            answers = batcher.ask(questions)
        except Full:
            raise Refused(503, "full", "too many requests wait; try again later") from None
        try:
            async with asyncio.timeout(self.settings.timeout_s):
                return await asyncio.gather(*answers)
        except TimeoutError:
            for answer in answers:
                answer.cancel()
            raise Refused(503, "timeout", "no answer in time; try again later") from None
        except Exception:  # the searching thread has written it down
            raise Refused(500, "search", "the search failed; the server's log says why") from None

    async def _content(
        self,
        served: Served,
        body: RecommendBody,
        questions: list[Question],
        lists: list[Ranked],
    ) -> Response:
        """The answer to a request for recommendations."""
        digits = 5 if served.recommender.fuser is None else 6
        shown = []
        for question, (items, scores) in zip(questions, lists, strict=True):
            listed: list[dict[str, Any]] = []
            for item, score in zip(items[: body.k], scores, strict=False):
                listed.append(
                    {
                        "rank": len(listed) + 1,
                        "item_id": served.item_ids[item],
                        "title": served.titles[item],
                        "score": round(score, digits),
                    }
                )
            if body.explain:
                await run_in_threadpool(explain, served, question, items, listed)
            shown.append(listed)
        self.metrics.lists.inc(len(shown))
        self.metrics.empty.inc(sum(not listed for listed in shown))
        version = {"version": served.version, "digest": served.digest}
        return as_json({"catalogue": version, "lists": shown})

    async def _swap(self, work: Callable[..., Served], *words: Any) -> dict[str, Any]:
        try:
            served = await run_in_threadpool(work, *words)
        except UserError as error:
            raise Refused(409, "reload", str(error)) from None
        self._note_version(served)
        return about(served)

    def _note_version(self, served: Served) -> None:
        self.metrics.version.set(served.version)
        self.metrics.items.set(len(served.item_ids))


def about(served: Served) -> dict[str, Any]:
    """A version in figures."""
    catalogue = served.recommender.catalogue
    return {
        "version": served.version,
        "digest": served.digest,
        "items": len(served.item_ids),
        "run": catalogue.data.path.parent.name,
        "checkpoint": served.recommender.policy.checkpoint.path.name,
        "num_beams": served.recommender.num_beams,
        "fusion": catalogue.experiment.evaluate.fusion,
    }


def explain(
    served: Served, question: Question, items: list[int], listed: list[dict[str, Any]]
) -> None:
    """Add to every item of a list why it is there."""
    explainer = served.recommender.explainer
    for item, shown in zip(items, listed, strict=False):
        explanation = explainer.explain(item, question.history)
        shown["explanation"] = explanation._asdict()


def as_json(content: Any, status: int = 200) -> Response:
    """An answer; numbers that JSON has no word for are a mistake of ours."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    raw = text.encode("utf-8", errors="replace")
    return Response(raw, status, media_type="application/json")


def refusal(status: int, text: str) -> Response:
    """One line instead of an answer."""
    response = as_json({"error": one_line(text)}, status)
    if status == 503:
        response.headers["Retry-After"] = "1"
    return response
