from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from shared.addresses import OnAddress, OnInterface, OnTailnet, parse_node_listen
from shared.quantities import duration, size
from shared.settings import Settings, SettingsError, load_settings

LONG_KEY = "k" * 40
NODE_TOKEN = "hln_" + "t" * 43


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home that is also the working folder, so that no file of the machine is found."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(home: Path, toml: str = "", /, environ: dict[str, str] | None = None, **flags: object) -> Settings:
    file = home / "made.toml"
    file.write_text(toml)
    return load_settings(config=file, flags=flags, environ={"HOME": str(home), **(environ or {})})


def problems(home: Path, toml: str = "", environ: dict[str, str] | None = None, **flags: object) -> str:
    with pytest.raises(SettingsError) as caught:
        load(home, toml, environ=environ, **flags)
    assert caught.value.__cause__ is None and caught.value.__suppress_context__, "a traceback would show the input"
    return str(caught.value)


def test_defaults_are_a_working_pair_on_one_machine(home: Path) -> None:
    settings = load_settings(environ={"HOME": str(home)})
    assert (settings.edge.listen, settings.edge.ops_listen) == ("127.0.0.1:8700", "127.0.0.1:8701")
    assert settings.node.listen == "auto"
    assert settings.node.runtime.kind == "auto"
    upstream = settings.edge.upstreams["default"]
    assert (upstream.kind, upstream.url, upstream.token) == ("link", "ws://127.0.0.1:8001/link", None)
    assert settings.state == home / ".local" / "state" / "hearthlink"
    assert {origin for _, _, origin in settings.dump()} == {"default"}


def test_each_source_overrides_the_one_before(home: Path) -> None:
    credentials = home / "credentials"
    credentials.mkdir()
    toml = "[node]\nqueue = 1\nmax_tokens = 1\nslots = 1\ndrain_timeout = 1"
    for key in ("node.max_tokens", "node.slots", "node.drain_timeout"):
        (credentials / key).write_text("2\n")
    environ = {
        "CREDENTIALS_DIRECTORY": str(credentials),
        "HEARTHLINK_NODE__SLOTS": "3",
        "HEARTHLINK_NODE__DRAIN_TIMEOUT": "3s",
    }
    settings = load(home, toml, environ=environ, **{"node.drain_timeout": "4s", "node.queue": None})
    node = settings.node
    assert (node.queue, node.max_tokens, node.slots, node.drain_timeout) == (1, 2, 3, 4.0)
    assert [settings.origin(f"node.{key}") for key in ("queue", "max_tokens", "slots", "drain_timeout", "listen")] == [
        f"file {home / 'made.toml'}",
        "credential node.max_tokens",
        "env HEARTHLINK_NODE__SLOTS",
        "flag",
        "default",
    ]


def test_a_whole_section_in_the_environment_replaces_the_files(home: Path) -> None:
    toml = '[edge.upstreams.a]\nnode = "gpu"\nlinks = 2'
    name = "HEARTHLINK_EDGE__UPSTREAMS__A"
    upstream = load(home, toml, environ={name: '{"url": "ws://127.0.0.1:1/link"}'}).edge.upstreams["a"]
    assert (upstream.node, upstream.url, upstream.links) == (None, "ws://127.0.0.1:1/link", 1)
    assert "edge.upstreams.a" in (said := problems(home, toml, environ={name: "gpu"})) and "as JSON" in said


def test_sections_merge_key_by_key(home: Path) -> None:
    toml = '[edge.upstreams.a]\nurl = "ws://127.0.0.1:1/link"\n[edge.upstreams.b]\nurl = "wss://b.example/link"'
    environ = {"HEARTHLINK_EDGE__UPSTREAMS__A__PRIORITY": "5", "HEARTHLINK_EDGE__UPSTREAMS__C__URL": "ws://c:1/link"}
    upstreams = load(home, toml, environ=environ, **{"edge.upstreams": {"b": {"links": 2}}}).edge.upstreams
    assert {name: (u.url, u.priority, u.links) for name, u in upstreams.items()} == {
        "a": ("ws://127.0.0.1:1/link", 5, 1),
        "b": ("wss://b.example/link", 0, 2),
        "c": ("ws://c:1/link", 0, 1),
    }


def test_the_default_upstream_keeps_its_url_when_only_a_token_is_given(home: Path) -> None:
    upstreams = load(home, environ={"HEARTHLINK_EDGE__UPSTREAMS__DEFAULT__TOKEN": NODE_TOKEN}).edge.upstreams
    assert upstreams["default"].url == "ws://127.0.0.1:8001/link"
    assert upstreams["default"].token is not None
    assert upstreams["default"].token.get_secret_value() == NODE_TOKEN


@pytest.mark.parametrize("text", ['["http://a.test", "http://b.test:81"]', "http://a.test, http://b.test:81,"])
def test_lists_in_the_environment_are_json_or_commas(home: Path, text: str) -> None:
    settings = load(home, environ={"HEARTHLINK_EDGE__ALLOWED_ORIGINS": text})
    assert settings.edge.allowed_origins == ["http://a.test", "http://b.test:81"]


def test_credentials_may_hold_one_token_a_line_and_strangers_are_left_alone(home: Path) -> None:
    credentials = home / "credentials"
    credentials.mkdir()
    (credentials / "node.tokens").write_text(f"{NODE_TOKEN}\n{NODE_TOKEN}2\n")
    (credentials / "node.crt").write_bytes(b"\xff\xfe")
    (credentials / "tls.key").write_bytes(b"\xff")
    (credentials / "edge").mkdir()
    settings = load(home, environ={"CREDENTIALS_DIRECTORY": str(credentials)})
    assert [token.get_secret_value() for token in settings.node.tokens] == [NODE_TOKEN, NODE_TOKEN + "2"]


def test_a_near_miss_among_the_credentials_is_an_error(home: Path) -> None:
    (home / "node.token").write_text(NODE_TOKEN)
    said = problems(home, environ={"CREDENTIALS_DIRECTORY": str(home)})
    assert "node.token (credential node.token) is not a setting. Did you mean node.tokens?" in said
    assert NODE_TOKEN not in said


@pytest.mark.parametrize(
    ("toml", "environ", "flags", "sentence"),
    [
        ("[edge]\npublc_url = 1", {}, {}, "edge.publc_url (file FILE) is not a setting. Did you mean edge.public_url?"),
        ("[edg]\nlisten = 1", {}, {}, "edg (file FILE) is not a setting. Did you mean edge?"),
        ("[edge]\ntokens = []", {}, {}, "Did you mean node.tokens?"),
        ("[edge.upstreams.x]\nurl='ws://x'\nurls=1", {}, {}, "Did you mean edge.upstreams.x.url?"),
        ("[plans.x]\nstream = 1", {}, {}, "plans.x.stream (file FILE) is not a setting. Did you mean plans.x.streams?"),
        (
            "",
            {"HEARTHLINK_EDGE__PUBLC_URL": "x"},
            {},
            "HEARTHLINK_EDGE__PUBLC_URL in the environment is not a setting. Did you mean HEARTHLINK_EDGE__PUBLIC_URL?",
        ),
        ("", {"HEARTHLINK_EDGE_LISTEN": "x"}, {}, "Did you mean HEARTHLINK_EDGE__LISTEN?"),
        ("", {}, {"node.quue": 1}, "node.quue (flag) is not a setting. Did you mean node.queue?"),
        ("[node]\nzzzz = 1", {}, {}, "[node] has: listen, tokens, queue,"),
    ],
)
def test_unknown_keys_are_errors_with_a_suggestion(
    home: Path, toml: str, environ: dict[str, str], flags: dict[str, object], sentence: str
) -> None:
    said = problems(home, toml, environ, **flags)
    assert sentence.replace("FILE", str(home / "made.toml")) in said


@pytest.mark.parametrize(
    ("toml", "sentence"),
    [
        ('[edge]\nlisten = "8700"', "edge.listen = '8700' (file FILE) is not an address to listen on"),
        ('[edge]\nlisten = "[::1:1"', "edge.listen"),
        ('[edge]\nlisten = "127.0.0.1:65536"', "edge.listen"),
        ('[edge]\nops_listen = "0.0.0.0:1"', "is not loopback"),
        ('[edge]\nops_listen = "127.0.0.1:8700"', "edge.listen and edge.ops_listen are the same address"),
        ('[edge]\nlisten = "0.0.0.0:1"\nrequire_authentication = false', "edge.require_authentication = False"),
        (
            '[edge]\npublic_url = "https://a.test"\nrequire_authentication = false',
            "edge.require_authentication = False",
        ),
        ('[edge]\nallowed_origins = ["https://a.test/"]', "write 'https://a.test'"),
        ('[edge]\nallowed_origins = ["https://A.test:443"]', "write 'https://a.test'"),
        ('[edge]\nallowed_origins = ["*"]', "edge.allowed_origins = '*' (file FILE) is not an origin"),
        ('[edge]\nallowed_origins = ["null"]', "is not an origin"),
        *(
            (f'[edge]\ntrusted_proxies = ["127.0.0.1", "{entry}"]', "is neither an IP address nor a network")
            for entry in ("*", "caddy", "10.0.0.0/33", "")
        ),
        *((f'[edge]\ntrusted_proxies = ["{entry}"]', "is every address") for entry in ("0.0.0.0/0", "::/0")),
        ('[edge]\npublic_url = "https://a.test/chat"', "has a path"),
        ('[edge]\npublic_url = "a.test"', "edge.public_url"),
        ('[edge]\nmax_body = "9MiB"', "edge.max_body = '9MiB' (file FILE) cannot be used: it"),
        ('[edge]\nmax_body = "9MiB"', "it should be less than or equal to 8MiB."),
        ("[audit]\nrotate_at = 1", "it should be greater than or equal to 64KiB."),
        ('[edge]\nheartbeat = "soon"', "edge.heartbeat = 'soon' (file FILE) is not a duration"),
        ("[edge]\nheartbeat = nan", "is not a duration"),
        ("[edge.upstreams.x]\nlinks = 1", "edge.upstreams.x (file FILE) has neither node nor url"),
        ('[edge.upstreams.x]\nnode = "gpu"\nurl = "ws://x:1"', "has both node and url"),
        (
            '[edge.upstreams.x]\nnode = "8.8.8.8"',
            "edge.upstreams.x.node = '8.8.8.8' (file FILE) is not an address of a tailnet",
        ),
        ('[edge.upstreams.x]\nnode = "a b"', "is no machine of a tailnet"),
        ('[edge.upstreams.x]\nurl = "ws://x:1"\ntls = {certificate = "c", key = "k", authority = "a"}', "write wss://"),
        ('[edge.upstreams.x.tls]\ncertificate = "c"', "edge.upstreams.x.tls (file FILE) lacks key, authority"),
        ('[edge]\nserve = "0.0.0.0:1"', "edge.serve = '0.0.0.0:1' (file FILE) is not loopback"),
        ('[node]\nlisten = "100.64.0.1:8001"', 'may change: write "tailnet"'),
        ('[node]\nlisten = "interface:"', "is not the name of a network interface"),
        (
            '[node.models.a]\naliases = ["fast"]\n[node.models.b]\naliases = ["quick", "fast"]',
            'has the alias "fast" for "a" and for "b": leave it with one of them',
        ),
        ('[node.models.a]\naliases = ["default"]', 'alias "default" for "a", which means the default model'),
        ('[node.models.a]\naliases = ["chat:home"]', 'alias "chat:home" for "a", which means a chat type'),
        ('[node]\nlisten = "interface:wg0"', "node.tls is missing: on an interface"),
        ('[node]\nlisten = "tailnet:x"', "has no port"),
        ('[tailscale]\nnode_capability = "https://a.b/c"', "is not the name of a capability"),
        ('[tailscale]\nproxy = "http://10.0.0.1:1"', "is not on this machine"),
        ('[edge.upstreams.X]\nurl = "ws://x:1"', "has the name 'X'"),
        ('[edge.upstreams.x]\nurl = "http://x:1"', "write ws:// or wss://HOST:PORT"),
        ('[node]\nlisten = "0.0.0.0:8001"', "node.listen = '0.0.0.0:8001' (file FILE) is not loopback"),
        ("[node]\nslots = 0", "node.slots = 0"),
        ('[node]\ntokens = ["short"]', "node.tokens (file FILE) is not a token"),
        (
            '[node.runtime]\nkind = "lmstudio"',
            "it should be 'auto', 'embedded', 'openai', 'lm-studio', 'llama.cpp', 'vllm', 'ollama' or 'sglang'",
        ),
        ('[node.runtime]\nkind = "openai"', "node.runtime.url is missing"),
        ('[node.runtime]\nurl = "http://10.0.0.9:1234"', "allow_remote_runtime = true"),
        ('[node.runtime]\nmodel = ""', "node.runtime.model = '' (file FILE) is empty"),
        ('[node]\nchat_types = " "', "node.chat_types = ' ' (file FILE) is empty"),
        ('[node.runtime]\nurl = "http://10.0.0.9:1"\nallow_remote_runtime = true', "unencrypted"),
        ("[plans.x]\nstreams = -1", "plans.x.streams = -1"),
        ('[plans.x]\nscopes = ["chat", "admn"]', "plans.x.scopes = 'admn' (file FILE)"),
        ("[edge]\nconnections_per_ip = 0", "edge.connections_per_ip = 0 (file FILE) would let nobody in"),
        ('[edge]\nexempt_origins = ["https://a.test"]', "'https://a.test', whose pages get no token"),
        *(
            (f'[edge]\nstore = "{url}"', f"edge.store (file FILE) {said}")
            for url, said in (
                ("postgres://h/0", "is no store"),
                ("redis:h", "is no store"),
                ("redis://h:x/0", "has a port"),
                ("redis://h:65536", "has a port"),
                ("redis://h:0/0", "has a port"),
                ("redis://:a#b@h/0", "has a port"),
                ("redis://h/0#b", "has a #"),
                ("redis://h/main", "names a database that is no number"),
                ("redis://h/0?db=main", "names a database"),
                ("unix:///run/redis.sock?db=", "names a database"),
                ("unix://redis.sock", "names no socket"),
                ("redis://h/0?ssl_ca_certs=a.pem", "has an option"),
                ("rediss://h/0?sll_ca_certs=a.pem", "has an option"),
                ("redis://u:a?b@h/0", "has a port"),
            )
        ),
        ('[logs]\nlevel = "LOUD"', "logs.level = 'LOUD'"),
        ("edge = 3", "edge (file FILE) cannot be used"),
    ],
)
def test_a_bad_value_is_reported_with_file_and_key(home: Path, toml: str, sentence: str) -> None:
    assert sentence.replace("FILE", str(home / "made.toml")) in problems(home, toml)


@pytest.mark.parametrize(
    "url",
    [
        "sqlite",
        "redis://localhost",
        "redis://localhost/",
        "redis://u:p%23@[::1]:6379/15",
        "redis://h/0?db=1",
        "rediss://h:6380/0?ssl_ca_certs=/etc/a.pem&ssl_check_hostname=false",
        "unix:///run/redis.sock?db=2",
        "unix://u:p@/run/redis.sock",
    ],
)
def test_urls_of_a_store(home: Path, url: str) -> None:
    assert load(home, f'[edge]\nstore = "{url}"').edge.store.get_secret_value() == url


def test_all_problems_are_reported_at_once(home: Path) -> None:
    environ = {"HEARTHLINK_NODE__SLOTS": "many", "HEARTHLINK_LGS__LEVEL": "INFO"}
    said = problems(home, "[edge]\nheartbeat = -1\nlistn = 1", environ, **{"node.queue": "x"})
    for part in ("edge.heartbeat", "edge.listn", "node.slots = 'many' (env HEARTHLINK_NODE__SLOTS)", "node.queue"):
        assert part in said
    assert "HEARTHLINK_LGS__LEVEL" in said
    assert len(said.splitlines()) == 5


def test_no_error_shows_a_secret(home: Path) -> None:
    toml = """
    [edge]
    signing_keys = ["SECRET-1"]
    public_url = "https://user:SECRET-2@a.test"
    listen = "hln_SECRET-3"
    mistyped = "SECRET-4"
    upstreams = { a = "SECRET-5", b = { url = "ws://b:1", token = "SECRET 6" } }
    [node]
    tokens = [{ a = "SECRET-7" }, 8]
    [node.runtime]
    key = "SECRET\\n8"
    url = "http://u:SECRET-9@127.0.0.1"
    """
    said = problems(home, toml)
    assert "SECRET" not in said
    for key in (
        "edge.signing_keys",
        "edge.public_url",
        "edge.listen",
        "edge.mistyped",
        "edge.upstreams",
        "node.tokens",
    ):
        assert key in said
    with pytest.raises(SettingsError) as caught:
        load(home, 'edge = "SECRET')
    assert "SECRET" not in str(caught.value)
    assert "is not TOML" in str(caught.value)


def test_dump_masks_secrets_and_is_json(home: Path) -> None:
    toml = f'[edge]\nsigning_keys = ["{LONG_KEY}"]\n[edge.upstreams.default]\ntoken = "{NODE_TOKEN}"'
    toml += f'\n[node]\ntokens = ["{NODE_TOKEN}"]\n[node.runtime]\nkey = "sk-1"\nurl = "http://127.0.0.1:1"'
    settings = load(home, toml)
    rows = {key: value for key, value, _ in settings.dump()}
    assert rows["edge.signing_keys"] == rows["node.tokens"] == ["***"]
    assert rows["node.runtime.key"] == rows["edge.upstreams.default.token"] == "***"
    assert rows["edge.max_body"] == 1024 * 1024
    for text in (json.dumps(settings.dump()), repr(settings)):
        assert LONG_KEY not in text and NODE_TOKEN not in text and "sk-1" not in text


def test_paths_in_the_file_are_relative_to_the_file(home: Path) -> None:
    folder = home / "etc"
    folder.mkdir()
    settings = load(folder, '[node]\nchat_types = "types"\n[node.runtime]\nmodel = "/models/m.gguf"')
    assert settings.node.chat_types == folder / "types"
    assert settings.node.runtime.model == Path("/models/m.gguf")
    assert load(folder, environ={"HEARTHLINK_NODE__CHAT_TYPES": "types"}).node.chat_types == home / "types"


def test_a_model_is_a_path_or_a_name(home: Path) -> None:
    folder = home / "etc"
    folder.mkdir()

    def model(text: str) -> object:
        return load(folder, f'[node.runtime]\nmodel = "{text}"').node.runtime.model

    assert model("m.gguf") == folder / "m.gguf" and model("./m") == folder / "m"
    assert model("m") == "m" and model("hf:owner/repo/m.gguf") == "hf:owner/repo/m.gguf"
    (folder / "m").touch()
    assert model("m") == folder / "m"
    environ = {"HEARTHLINK_NODE__RUNTIME__MODEL": "m"}
    assert load(folder, environ=environ).node.runtime.model == "m", "nothing in the working folder is called so"
    assert "node.runtime.model = 5" in problems(folder, "[node.runtime]\nmodel = 5")


def test_paths_that_the_system_refuses_are_read_all_the_same(home: Path) -> None:
    """What is wrong with them is said by whoever opens them."""
    long = "m" * 300
    nobody = "~nobody-is-called-so/x.gguf"

    def model(text: str) -> object:
        return load(home, f'[node.runtime]\nmodel = "{text}"').node.runtime.model

    assert model(long) == long and model(f"./{long}") == home / long
    assert model(nobody) == home / nobody
    assert load(home, f'[node]\nchat_types = "{nobody}"').node.chat_types == home / nobody
    assert f"file {nobody} does not exist" in config_problem(nobody)


def config_problem(path: str) -> str:
    with pytest.raises(SettingsError) as caught:
        load_settings(config=Path(path), environ={})
    return str(caught.value)


def test_a_folder_is_no_model(home: Path) -> None:
    (home / "tiny").mkdir()
    assert load(home, '[node.runtime]\nmodel = "tiny"').node.runtime.model == "tiny"


def test_a_path_below_a_closed_folder_is_a_path(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed, real = home / "closed", os.stat

    def stat(path: Any, **options: Any) -> os.stat_result:
        """As the system answers everybody but root."""
        if closed in Path(path).parents:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return real(path, **options)

    monkeypatch.setattr(os, "stat", stat)
    assert load(home, '[node.runtime]\nmodel = "closed/m.gguf"').node.runtime.model == closed / "m.gguf"
    assert load(home, '[node]\nchat_types = "closed/types"').node.chat_types == closed / "types"


def test_lm_studios_variable_stands_in(home: Path) -> None:
    environ = {"LM_STUDIO_BASE_URL": "http://localhost:1234/v1"}
    settings = load(home, environ=environ)
    assert (settings.node.runtime.kind, settings.node.runtime.url) == ("openai", "http://localhost:1234/v1")
    assert settings.origin("node.runtime.url") == "env LM_STUDIO_BASE_URL"
    assert load(home, '[node.runtime]\nkind = "embedded"', environ=environ).node.runtime.url is None
    kept = load(home, '[node.runtime]\nurl = "http://127.0.0.1:9"', environ=environ).node.runtime
    assert (kept.kind, kept.url) == ("auto", "http://127.0.0.1:9")
    named = load(home, '[node.runtime]\nkind = "lm-studio"', environ=environ).node.runtime
    assert (named.kind, named.url) == ("lm-studio", "http://localhost:1234/v1")
    assert load(home, '[node.runtime]\nkind = "vllm"', environ=environ).node.runtime.url is None


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("http://127.0.0.1:1", True),
        ("http://[::1]:1", True),
        ("http://100.101.102.103:1", True),
        ("http://box.tail1234.ts.net:1", True),
        ("https://api.example.com/v1", True),
        ("http://api.example.com/v1", False),
    ],
)
def test_a_remote_runtime_needs_https_unless_it_is_on_the_tailnet(home: Path, url: str, allowed: bool) -> None:
    toml = f'[node.runtime]\nurl = "{url}"\nallow_remote_runtime = true'
    if allowed:
        assert load(home, toml).node.runtime.url == url
    else:
        assert "unencrypted" in problems(home, toml)


def test_plans_tell_what_was_written(home: Path) -> None:
    plan = load(home, '[plans.member]\nstreams = "unlimited"\nmodels = ["*"]').plans["member"]
    assert plan.model_fields_set == {"streams", "models"}
    assert plan.streams is None


def test_variables_that_are_not_settings(home: Path) -> None:
    environ = {
        "HEARTHLINK_STATE": str(home / "s"),
        "HEARTHLINK_NODE__SLOTS": "",
        "HEARTHLINK_PORT": "tcp://10.0.0.1:8700",
        "HEARTHLINK_EDGE_SERVICE_HOST": "10.0.0.1",
        "HEARTHLINK_EDGE_PORT_8700_TCP_ADDR": "10.0.0.1",
        "OTHER": "x",
    }
    settings = load(home, environ=environ)
    assert settings.node.slots is None
    assert settings.state == home / "s"
    assert settings.origin("state") == "env HEARTHLINK_STATE"


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"HEARTHLINK_STATE": "/a", "STATE_DIRECTORY": "/b"}, "/a"),
        ({"STATE_DIRECTORY": "/b:/c", "XDG_STATE_HOME": "/d"}, "/b"),
        ({"XDG_STATE_HOME": "/d"}, "/d/hearthlink"),
        ({"XDG_STATE_HOME": "relative", "HOME": "/h"}, "/h/.local/state/hearthlink"),
    ],
)
def test_where_state_is_kept(home: Path, environ: dict[str, str], expected: str) -> None:
    assert load_settings(environ=environ).state == Path(expected)


def test_which_file_is_read(home: Path) -> None:
    def queue(**environ: str) -> int:
        return load_settings(environ={"HOME": str(home), **environ}).node.queue

    xdg = home / ".config" / "hearthlink"
    xdg.mkdir(parents=True)
    (xdg / "hearthlink.toml").write_text("[node]\nqueue = 1")
    assert queue() == 1
    (home / "hearthlink.toml").write_text("[node]\nqueue = 2")
    assert queue() == 2
    (home / "named.toml").write_text("[node]\nqueue = 3")
    assert queue(HEARTHLINK_CONFIG=str(home / "named.toml")) == 3
    with pytest.raises(SettingsError, match=r"nowhere\.toml does not exist.*HEARTHLINK_CONFIG"):
        queue(HEARTHLINK_CONFIG=str(home / "nowhere.toml"))
    with pytest.raises(SettingsError, match="does not exist"):
        load_settings(config=home / "gone.toml", environ={"HOME": str(home)})
    (home / "hearthlink.toml").write_bytes(b"\xff")
    with pytest.raises(SettingsError, match="not UTF-8"):
        queue()


def test_settings_cannot_be_changed(home: Path) -> None:
    settings = load(home)
    with pytest.raises(ValueError, match="frozen"):
        settings.edge.listen = "127.0.0.1:1"


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("30s", 30), ("10m", 600), ("24h", 86400), ("1h30m", 5400), ("1.5s", 1.5), ("250ms", 0.25), ("7", 7), (7.5, 7.5)],
)
def test_durations(written: object, seconds: float) -> None:
    assert duration(written) == seconds


@pytest.mark.parametrize("written", ["", "s", "-1s", "30 parsecs", "1e9", True, None, -1, float("inf"), "٣s", "9" * 99])
def test_what_is_no_duration(written: object) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        duration(written)


@pytest.mark.parametrize(
    ("written", "count"), [("256KiB", 262144), ("1MiB", 1 << 20), ("1 mb", 10**6), ("17", 17), (17, 17), ("2kB", 2000)]
)
def test_sizes(written: object, count: int) -> None:
    assert size(written) == count


@pytest.mark.parametrize("written", ["", "KiB", "1.5MiB", "-1", True, 1.0, "1 TiB", "1i", "1ib"])
def test_what_is_no_size(written: object) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        size(written)


def test_reading_settings_does_not_load_what_serving_needs() -> None:
    """Start-up time is a promise: settings are read before anything else is imported."""
    code = "import sys, shared.settings; print(*{'aiohttp', 'starlette', 'typer', 'asyncio'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert set(run.stdout.split()) <= {"asyncio"}


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("auto", OnTailnet(8001, certain=False)),
        ("tailnet", OnTailnet(8001)),
        ("tailnet:9001", OnTailnet(9001)),
        ("interface:wg0", OnInterface("wg0", 8001)),
        ("interface:zt7nnig34k:9001", OnInterface("zt7nnig34k", 9001)),
        ("[::1]:0", OnAddress("::1", 0)),
    ],
)
def test_where_a_node_listens_is_read(text: str, meant: OnTailnet | OnInterface | OnAddress) -> None:
    assert parse_node_listen(text) == meant


def test_a_credential_for_a_file_is_the_file(home: Path) -> None:
    """systemd puts a private key into a file of its own: the setting is the path of that file."""
    folder = home / "credentials"
    folder.mkdir()
    for name in ("certificate", "key", "authority"):
        (folder / f"node.tls.{name}").write_text("-----BEGIN")
    settings = load_settings(environ={"HOME": str(home), "CREDENTIALS_DIRECTORY": str(folder)})
    assert settings.node.tls.key == folder / "node.tls.key"
    assert settings.origin("node.tls.key") == "credential node.tls.key"


def test_the_upstream_default_may_be_a_machine_of_the_tailnet(home: Path) -> None:
    settings = load_settings(environ={"HOME": str(home), "HEARTHLINK_EDGE__UPSTREAMS__DEFAULT__NODE": "gpu"})
    assert (settings.edge.upstreams["default"].node, settings.edge.upstreams["default"].url) == ("gpu", None)


def test_seats_are_not_for_callers_whose_names_change_each_day(home: Path) -> None:
    assert "give plan anonymous no seats" in problems(home, "[plans.anonymous]\nseats = 5\n")
    load(home, '[plans.anonymous]\nseats = "unlimited"\n[plans.beta]\nseats = 5\n')
