"""Who may ask: tokens, pages of other hosts; and the page itself."""

import re

import httpx
import pytest

from kpl_engine.errors import UnauthorizedError
from kpl_engine.server.http import app
from kpl_engine.server.http.page import read_page
from kpl_engine.server.settings import ServerSettings
from tests.server.doubles import EngineService

INFER = "/v2/models/demo/infer"


@pytest.fixture
def page(tmp_path, monkeypatch):
    (tmp_path / "index.html").write_text("<p>hello</p>")
    (tmp_path / "page.js").write_text("'use strict'")
    (tmp_path / "notes.txt").write_text("not for browsers")
    (tmp_path / "inner").mkdir()
    monkeypatch.setattr(app, "_PAGE", tmp_path)
    return tmp_path


def client_of(server, **options):
    return httpx.Client(base_url=server.url, timeout=20, **options)


def guard(scope):
    if (b"authorization", b"Bearer right") not in scope["headers"]:
        raise UnauthorizedError("this server needs a token")


def test_tokens(serve, demo_engine, page):
    with client_of(serve(EngineService(demo_engine), guard)) as ask:
        for path in ("/v2/health/live", "/v2/health/ready", "/", "/page.js"):
            assert ask.get(path).status_code == 200
        for path in (
            "/v2",
            "/v2/models/demo",
            "/v2/models/demo/ready",
            "/v1/status",
            "/nothing",
            "/v2/health/../models",
        ):
            found = ask.get(path)
            assert (found.status_code, found.headers["www-authenticate"]) == (401, "Bearer")
            assert found.headers["x-request-id"]
        assert ask.post(INFER, content=b"").status_code == 401
        assert ask.post("/v1/classify").json()["error"]["code"] == "unauthorized"
        assert ask.get("/v2", headers={"authorization": "Bearer right"}).status_code == 200
        assert ask.get("/v2//health/live").status_code == 401


def test_refused_before_the_body_is_read(serve, demo_engine):
    service = EngineService(demo_engine)

    def body():
        yield b"x"

    with client_of(serve(service, guard)) as ask:
        assert ask.post(INFER, content=body()).status_code == 401
    assert service.inflight_bytes == 0
    assert service.requests == []


@pytest.mark.parametrize("origin", ["https://other.example", "null", "http://127.0.0.1:1", "http://["])
def test_pages_of_other_hosts_change_nothing(http_server, service, origin):
    with client_of(http_server, headers={"origin": origin}) as ask:
        for path in (INFER, "/v2/repository/models/demo/unload", "/v1/classify"):
            assert ask.post(path, json={}).status_code == 403
        assert service.loaded
        found = ask.get("/v2")
        assert found.status_code == 200
        assert "access-control-allow-origin" not in found.headers
        assert ask.options(INFER, headers={"access-control-request-method": "POST"}).status_code == 405


def test_own_page_may(http_server):
    with client_of(http_server, headers={"origin": http_server.url}) as ask:
        assert ask.post("/v2/repository/index").status_code == 200


def test_allowed_pages(serve, demo_engine):
    settings = ServerSettings(cors_origins=("https://allowed.example",))
    with client_of(serve(EngineService(demo_engine, settings=settings), guard)) as ask:
        given = {"origin": "https://allowed.example"}
        asked = ask.options(INFER, headers={**given, "access-control-request-method": "POST"})
        assert asked.status_code == 204
        assert asked.headers["access-control-allow-origin"] == "https://allowed.example"
        assert "inference-header-content-length" in asked.headers["access-control-allow-headers"]
        for headers, code in ((given, 401), ({**given, "authorization": "Bearer right"}, 400)):
            found = ask.post(INFER, content=b"{", headers=headers)
            assert found.status_code == code
            assert found.headers["access-control-allow-origin"] == "https://allowed.example"
            assert found.headers["vary"] == "Origin"
        assert ask.post(INFER, headers={"origin": "https://allowed.example.evil"}).status_code == 403


def test_page(serve, demo_engine, page):
    with client_of(serve(EngineService(demo_engine))) as ask:
        for path in ("/", "/index.html"):
            found = ask.get(path)
            assert (found.status_code, found.text) == (200, "<p>hello</p>")
            assert found.headers["content-type"] == "text/html; charset=utf-8"
            assert "default-src 'none'" in found.headers["content-security-policy"]
            assert "unsafe" not in found.headers["content-security-policy"]
            assert found.headers["x-content-type-options"] == "nosniff"
        assert ask.get("/page.js").headers["content-type"] == "text/javascript; charset=utf-8"
        assert ask.get("/", headers={"if-none-match": found.headers["etag"]}).status_code == 304
        same = ask.head("/")
        assert (same.content, same.headers["content-length"]) == (b"", "12")
        assert ask.post("/").status_code == 405
        for path in ("/notes.txt", "/inner", "/inner/", "/page.js/", "/../conftest.py", "/%2e%2e/conftest.py"):
            assert ask.get(path).status_code == 404


def test_no_page(serve, demo_engine, page):
    with client_of(serve(EngineService(demo_engine, settings=ServerSettings(page=False)))) as ask:
        assert ask.get("/").status_code == 404


def test_a_missing_folder_is_an_empty_page(tmp_path):
    assert read_page(tmp_path / "none") == {}


def test_v1_errors_have_code_and_id(http_server, service, pictures):
    service.fail_with = RuntimeError("detail")
    with client_of(http_server) as ask:
        found = ask.post("/v1/classify", files={"image": pictures[0]}, headers={"x-request-id": "mine"})
        assert found.status_code == 500
        assert found.json()["error"]["request_id"] == "mine"
        assert found.json()["error"]["code"] == "internal"
        assert found.headers.get_list("x-request-id") == ["mine"]
        wrong = ask.get("/v1/classify")
        assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")


def test_the_page_of_the_package_is_whole(http_server):
    """Not a stand-in: what index.html names is there, and its policy lets the browser load it."""
    with client_of(http_server) as ask:
        found = ask.get("/")
        assert found.status_code == 200
        named = re.findall(r'(?:src|href)="([^"#][^"]*)"', found.text)
        assert named
        for address in named:
            assert "//" not in address  # nothing from another host
            assert ask.get(f"/{address.lstrip('./')}").status_code == 200, address
