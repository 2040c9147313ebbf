"""Keys, tickets, origins, rates and bodies: who gets in, and what the others are told."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.exceptions import InvalidStatus

from quaver.app.server.auth import KeyStore, Tickets, bearer, host_allowed, origin_allowed
from quaver.app.server.settings import ServerSettings, check_safe_to_bind, read_settings
from quaver.errors import BadInput, ConfigError, CorruptFile, MissingFile
from quaver.tts.synthesizer import Synthesizer

from ..conftest import Run, assert_one_line
from .conftest import Running, receive, serving

SPEECH = "/v1/audio/speech"
HELLO = {"input": "Two cats sat there.", "response_format": "pcm"}


@pytest.fixture(scope="module")
def closed(synthesizer: Synthesizer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, str]]:
    """A server with a key, and the key."""
    folder = tmp_path_factory.mktemp("closed")
    key = KeyStore(folder / "keys.json").add("alice")
    with serving(synthesizer, folder, limits={"refused_per_minute": 1000}, origins=("https://app.example",)) as running:
        yield running, key


def auth(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


# -- keys -------------------------------------------------------------------------------------------------------------
def test_secrets_are_not_in_the_file_and_the_file_is_private(tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "keys.json")
    secret = store.add("alice")
    assert secret not in store.path.read_text()
    assert secret[3:] not in store.path.read_text()
    assert stat.S_IMODE(store.path.stat().st_mode) == 0o600
    found = store.find(secret)
    assert found is not None
    assert found.name == "alice"
    assert store.find(secret[:-1]) is None
    assert store.find("") is None
    with pytest.raises(BadInput, match="already"):
        store.add("alice")
    with pytest.raises(BadInput, match="no name"):
        store.add("../alice")


def test_another_process_sees_a_revoked_key_go(tmp_path: Path) -> None:
    ours, theirs = KeyStore(tmp_path / "keys.json"), KeyStore(tmp_path / "keys.json")
    secret = ours.add("alice")
    assert theirs.find(secret) is not None
    ours.add("bob")
    ours.revoke("alice")
    assert theirs.find(secret) is None
    with pytest.raises(BadInput):
        ours.revoke("alice")


def test_a_damaged_key_file_is_not_an_open_door(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    for damage in ("", "{}", '[{"name": "a"}]'):
        path.write_text(damage)
        with pytest.raises(CorruptFile):
            KeyStore(path).keys()


def test_keys_by_command(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    added = run("serve", "keys", "add", "alice", "--keys", path, "--rate", 5)
    assert added.code == 0
    assert KeyStore(path).find(added.out.decode().strip()) is not None
    assert b"alice" in run("serve", "keys", "list", "--keys", path).out
    assert run("serve", "keys", "revoke", "alice", "--keys", path).code == 0
    assert run("serve", "keys", "list", "--keys", path).out == b""
    assert_one_line(run("serve", "keys", "revoke", "alice", "--keys", path), "alice")


def test_without_keys_only_loopback(run: Run, tmp_path: Path) -> None:
    result = run("serve", "--host", "0.0.0.0", "--keys", tmp_path / "keys.json")
    assert_one_line(result, "quaver serve keys add", "loopback")
    check_safe_to_bind(ServerSettings(host="0.0.0.0"), has_keys=True)
    for host in ("127.0.0.1", "localhost", "::1"):
        check_safe_to_bind(ServerSettings(host=host), has_keys=False)
    for host in ("::", "10.0.0.1", "example.org"):
        with pytest.raises(BadInput):
            check_safe_to_bind(ServerSettings(host=host), has_keys=False)
    with pytest.raises(BadInput, match="both"):
        check_safe_to_bind(ServerSettings(tls_key=tmp_path / "a"), has_keys=False)
    with pytest.raises(MissingFile):
        check_safe_to_bind(ServerSettings(tls_key=tmp_path / "a", tls_certificate=tmp_path / "b"), has_keys=False)


def test_only_the_right_key_opens(closed: tuple[Running, str]) -> None:
    running, key = closed
    with running.http() as http:
        for headers in ({}, auth("qv-wrong"), {"Authorization": f"Basic {key}"}, auth("é")):
            raw = [(k.encode(), v.encode()) for k, v in headers.items()]
            answer = http.post(SPEECH, json=HELLO, headers=raw)
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "invalid_api_key"
            assert answer.headers["www-authenticate"] == "Bearer"
        assert http.get(f"/v1/models?api_key={key}&ticket={key}").status_code == 401  # keys do not belong into URLs
        assert http.get("/metrics").status_code == 401
        assert http.get("/healthz").status_code == 200
        assert http.post(SPEECH, json=HELLO, headers=auth(key)).status_code == 200
    with pytest.raises(InvalidStatus) as refused, running.ws():
        pass
    assert refused.value.response.status_code == 401
    assert json.loads(refused.value.response.body or b"")["error"]["code"] == "invalid_api_key"
    with running.ws(additional_headers=auth(key)):
        pass


def test_outcomes_belong_to_their_key(closed: tuple[Running, str]) -> None:
    running, key = closed
    other = running.app.state.service.access.store.add("eve")
    with running.http() as http:
        identity = http.post(SPEECH, json=HELLO, headers=auth(key)).headers["x-request-id"]
        assert http.get(f"{SPEECH}/{identity}", headers=auth(key)).status_code == 200
        assert http.get(f"{SPEECH}/{identity}", headers=auth(other)).status_code == 404
        assert http.delete(f"{SPEECH}/{identity}", headers=auth(other)).status_code == 404


def test_a_ticket_opens_one_socket_once(closed: tuple[Running, str]) -> None:
    running, key = closed
    with running.http() as http:
        ticket = http.post("/v1/realtime/client_secrets", json={"session": {}}, headers=auth(key)).json()["value"]
        second = http.post("/v1/realtime/client_secrets", headers=auth(key)).json()
    assert 0 < second["expires_at"] - time.time() <= 61
    with running.ws(f"/v1/realtime?ticket={ticket}") as opened:
        assert receive(opened)["type"] == "session.created"
    with pytest.raises(InvalidStatus), running.ws(f"/v1/realtime?ticket={ticket}"):
        pass
    protocols = ["realtime", f"openai-insecure-api-key.{second['value']}"]
    with running.ws("/v1/realtime", subprotocols=protocols) as opened:
        assert opened.subprotocol == "realtime"


@given(st.text(max_size=60))
@settings(max_examples=50, deadline=None)
def test_tickets_cannot_be_made_up(text: str) -> None:
    now = [1000.0]
    tickets = Tickets(60, lambda: now[0])
    assert tickets.redeem(text) is None
    ticket, _ = tickets.issue("alice")
    assert tickets.redeem(ticket + text) == (None if text else "alice")
    late, _ = tickets.issue("alice")
    now[0] += 61
    assert tickets.redeem(late) is None
    assert Tickets(60, lambda: now[0]).redeem(tickets.issue("alice")[0]) is None


def test_too_many_wrong_keys_are_told_to_wait(synthesizer: Synthesizer, tmp_path: Path) -> None:
    KeyStore(tmp_path / "keys.json").add("alice")
    with serving(synthesizer, tmp_path, limits={"refused_per_minute": 3}) as running, running.http() as http:
        answers = [http.get("/v1/models", headers=auth(f"qv-{i}")) for i in range(5)]
    assert [a.status_code for a in answers] == [401, 401, 401, 429, 429]
    assert int(answers[-1].headers["retry-after"]) > 0


# -- origins ----------------------------------------------------------------------------------------------------------
def test_origins(closed: tuple[Running, str]) -> None:
    running, key = closed
    own = running.url
    with running.http(headers=auth(key)) as http:
        for origin, status in ((own, 200), ("https://app.example", 200), ("https://evil.example", 403), ("null", 403)):
            assert http.get("/v1/models", headers={"Origin": origin}).status_code == status
    with pytest.raises(InvalidStatus) as refused:
        running.ws(additional_headers=auth(key), origin="https://evil.example").close()  # type: ignore[arg-type]
    assert refused.value.response.status_code == 403
    running.ws(additional_headers=auth(key), origin="https://app.example").close()  # type: ignore[arg-type]


def test_allowed_origins_pass_a_browsers_preflight(closed: tuple[Running, str]) -> None:
    running, _ = closed
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    with running.http() as http:
        good = http.options(SPEECH, headers={**asks, "Origin": "https://app.example"})
        assert good.headers["access-control-allow-origin"] == "https://app.example"
        bad = http.options(SPEECH, headers={**asks, "Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in bad.headers


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_tls(synthesizer: Synthesizer, tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subject = ["-subj", "/CN=localhost", "-days", "1", "-keyout", str(key), "-out", str(certificate)]
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", *subject]
    subprocess.run(make, check=True, capture_output=True)
    with serving(synthesizer, tmp_path, tls_certificate=certificate, tls_key=key) as running:
        assert running.url.startswith("https")
        with (
            running.http(verify=ssl.create_default_context(cafile=str(certificate))) as http,
            pytest.raises(httpx.ConnectError),
        ):
            http.get("/healthz")  # the name in the certificate is another one
        with running.http(verify=False) as http:
            assert http.post(SPEECH, json=HELLO).status_code == 200


def test_an_open_server_answers_to_no_foreign_name(synthesizer: Synthesizer, tmp_path: Path) -> None:
    with serving(synthesizer, tmp_path) as running, running.http() as http:  # DNS rebinding
        answer = http.get("/v1/models", headers={"Host": "evil.example", "Origin": "http://evil.example"})
        assert answer.status_code == 403
        assert answer.json()["error"]["code"] == "origin_not_allowed"


@given(st.text(max_size=30), st.text(max_size=30))
@settings(max_examples=100, deadline=None)
def test_origin_and_host_checks_take_any_text(origin: str, host: str) -> None:
    assert not (origin_allowed(origin, "", ()))
    host_allowed(host, ())
    bearer(origin, [host], host)
    assert origin_allowed(None, host, ())
    assert not host_allowed(f"{'a' * 3}.example:80", ())


# -- rates and bodies -------------------------------------------------------------------------------------------------
def test_rates_and_sessions_per_key(synthesizer: Synthesizer, tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "keys.json")
    slow, fast = store.add("slow", 2), store.add("fast")
    with serving(synthesizer, tmp_path, limits={"sessions_per_key": 2}) as running:
        with running.http() as http:
            codes = [http.post(SPEECH, json=HELLO, headers=auth(slow)).status_code for _ in range(3)]
            assert codes == [200, 200, 429]
            refused = http.post(SPEECH, json=HELLO, headers=auth(slow))
            assert refused.json()["error"]["code"] == "rate_limited"
            assert 0 < int(refused.headers["retry-after"]) <= 61
            assert http.post(SPEECH, json=HELLO, headers=auth(fast)).status_code == 200
        held = [running.ws("/v1/realtime", additional_headers=auth(fast)) for _ in range(2)]
        assert [receive(s)["type"] for s in held] == ["session.created"] * 2
        with running.ws("/v1/realtime", additional_headers=auth(fast)) as third:
            assert receive(third)["error"]["code"] == "too_many_sessions"
        for session in held:
            session.send('{"type": "session.close"}')
            session.close()
        with running.ws(additional_headers=auth(fast)) as socket:
            socket.send('{"type": "session.config"}')
            assert receive(socket)["type"] == "session.configured"


def test_a_body_that_trickles_in_is_refused(synthesizer: Synthesizer, tmp_path: Path) -> None:
    with serving(synthesizer, tmp_path, limits={"body_seconds": 0.3}) as running:
        host, port = running.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), 10) as raw:
            raw.sendall(b"POST /v1/audio/speech HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
            assert b" 408 " in raw.recv(4096).split(b"\r\n")[0]
        with running.http() as http:
            assert http.post(SPEECH, content=chunks(3_000_000)).status_code == 413


def chunks(size: int) -> Iterator[bytes]:
    for _ in range(size // 10_000):
        yield b" " * 10_000


def test_the_server_never_fetches_what_a_client_names(closed: tuple[Running, str]) -> None:
    """A URL is a voice name like any other: unknown."""
    running, key = closed
    with socket.create_server(("127.0.0.1", 0)) as trap, running.http(headers=auth(key)) as http:
        trap.settimeout(0.2)
        url = f"http://127.0.0.1:{trap.getsockname()[1]}/voice.wav"
        for voice in (url, {"id": url}):
            assert http.post(SPEECH, json={**HELLO, "voice": voice}).status_code == 422
        assert http.post(SPEECH, json={**HELLO, "ref_audio": url}).status_code == 422
        with pytest.raises(TimeoutError):
            trap.accept()


def test_text_and_secrets_are_not_logged(closed: tuple[Running, str], caplog: pytest.LogCaptureFixture) -> None:
    running, key = closed
    with caplog.at_level("DEBUG", logger="quaver.server"), running.http(headers=auth(key)) as http:
        http.post(SPEECH, json={**HELLO, "input": "A secret zebra."})
        http.post(SPEECH, json={**HELLO, "voice": "zebra"})
    text = " ".join(f"{r.getMessage()} {vars(r)}" for r in caplog.records)
    assert "speech" in text
    assert "zebra" not in text
    assert key not in text


# -- settings ---------------------------------------------------------------------------------------------------------
def test_flags_come_before_environment_before_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text("port: 1\nslots: 2\nwaiting: 3\nlimits:\n  text_characters: 9\n  items: 7\n")
    monkeypatch.setenv("QUAVER_SLOTS", "4")
    monkeypatch.setenv("QUAVER_LIMITS__ITEMS", "8")
    settings = read_settings(file, port=5, slots=None)
    assert (settings.port, settings.slots, settings.waiting) == (5, 4, 3)
    assert (settings.limits.text_characters, settings.limits.items) == (9, 8)
    monkeypatch.setenv("QUAVER_CONFIG", str(file))
    assert read_settings().port == 1


@pytest.mark.parametrize(
    "text", ["port: 99999", "sluts: 3", "limits: {idle_seconds: -1}", "origins: [example.org]", "{", "- 1"]
)
def test_bad_settings_are_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "serve.yaml").write_text(text)
    with pytest.raises(ConfigError):
        read_settings(tmp_path / "serve.yaml")
    with pytest.raises(MissingFile):
        read_settings(tmp_path / "none.yaml")
