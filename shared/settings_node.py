"""``[node]``: one named field each, with unit, default and bounds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from shared import addresses
from shared.settings_fields import AnyPath, ApiKey, Bearer, FromText, Model, ModelName, Seconds
from shared.settings_models import ConversationSettings, ModelSettings
from shared.settings_sections import DAY, Section, TlsSettings

NODE_PORT = addresses.NODE_PORT
DEMO_MODEL = Path(__file__).resolve().parent.parent / "models" / "demo.gguf"


def _node_listen(text: str) -> str:
    addresses.parse_node_listen(text)
    return text


class RuntimeSettings(Section):
    """``[node.runtime]``: what computes the answers."""

    kind: Literal["auto", "embedded", "openai", "lm-studio", "llama.cpp", "vllm", "ollama", "sglang"] = Field(
        default="auto",
        description="`embedded`: llama.cpp in the node. `openai`: any server at `url`. The others: that server, without"
        " `url` where it is by default. `auto`: one found here, else `embedded`.",
    )
    allow_remote_runtime: bool = Field(
        default=False, description="Whether `url` may be another machine, which then sees the prompts."
    )
    url: str | None = Field(
        default=None,
        validate_default=True,
        description="The server, with or without `/v1`. `LM_STUDIO_BASE_URL` is read when this is not set.",
    )
    key: ApiKey | None = Field(default=None, description="What that server wants as `Authorization: Bearer`.")
    model: Model | None = Field(
        default_factory=lambda: DEMO_MODEL if DEMO_MODEL.is_file() else None,
        description="The GGUF file of `embedded`, or a model as `model pull` names it, which `hearthlink node` pulls.",
    )
    default_model: str | None = Field(
        default=None,
        min_length=1,
        max_length=256,
        description="The model that answers when nobody names one. Without it, one that the server has in memory.",
    )
    context: int | None = Field(
        default=None,
        ge=128,
        le=16_777_216,
        description="Tokens of prompt and answer together, for each slot. Without it, what the model says.",
    )
    gpu_layers: int = Field(
        default=-1, ge=-1, description="Layers of the model that the GPU computes; -1: all that fit."
    )
    threads: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="Threads of `embedded`. Without it, one per core, less one of four and more.",
    )
    models: AnyPath | None = Field(
        default=None,
        description="A folder of GGUF files that `embedded` loads when they are named. Without it, those pulled.",
    )

    @field_validator("url")
    @classmethod
    def _reachable(cls, text: str | None, info: ValidationInfo) -> str | None:
        if text is None:
            if info.data.get("kind") == "openai":
                raise ValueError('is missing: kind = "openai" needs the server\'s URL, such as http://127.0.0.1:1234')
            return None
        url = addresses.split_url(text, "http", "https")
        host = url.hostname or ""
        if addresses.is_loopback(host):
            return text
        if not info.data.get("allow_remote_runtime"):
            raise ValueError(
                "is not on this machine: set node.runtime.allow_remote_runtime = true to send prompts there"
            )
        if url.scheme != "https" and not addresses.is_tailnet(host):
            raise ValueError(
                "would carry prompts unencrypted to another machine: use https, or an address of the tailnet"
            )
        return text

    @property
    def embedded(self) -> bool:
        """Whether the node loads models itself: told to, or given a model or a folder of them and no server. ``auto``
        with neither looks around first."""
        return self.kind == "embedded" or (
            self.kind == "auto" and self.url is None and not self.model_fields_set.isdisjoint(("model", "models"))
        )

    @property
    def own_model(self) -> Path | str | None:
        """The model of ``embedded``; the one that came along is for those who brought none."""
        return self.model if self.models is None or "model" in self.model_fields_set else None


class NodeSettings(Section):
    """``[node]``: the side of the GPU."""

    listen: Annotated[str, AfterValidator(_node_listen)] = Field(
        default="auto",
        description="Where the edge's link connects: `tailnet`, this machine's addresses there and nothing else;"
        " `127.0.0.1:8001`; `interface:wg0`, which needs `tls`. Another port: `tailnet:9001`, `interface:wg0:9001`."
        " `auto`: `tailnet` where tailscaled answers, else loopback.",
    )
    tokens: Annotated[list[Bearer], FromText] = Field(
        default=[],
        description="What an edge may show: the current one and the next. Empty: the state's `node-token`.",
    )
    queue: int = Field(
        default=64,
        ge=0,
        le=10_000,
        description="Requests that may wait for a slot; one more is refused with `overloaded`.",
    )
    slots: int | None = Field(
        default=None, ge=1, le=65_536, description="Answers that run at once. Without it, what the runtime says."
    )
    chat_types: AnyPath | None = Field(
        default=None, description="A folder of chat types that replaces the shipped one."
    )
    first_token_timeout: Seconds = Field(
        default=120.0, gt=0, le=DAY, description="From the beginning of an answer's turn to its first token."
    )
    stall_timeout: Seconds = Field(
        default=60.0, gt=0, le=DAY, description="How long the runtime may be silent in the middle of an answer."
    )
    drain_timeout: Seconds = Field(
        default=20.0, ge=0, le=300, description="How long running answers may go on after SIGTERM."
    )
    max_tokens: int = Field(
        default=4096,
        ge=1,
        le=1_000_000,
        description="The longest answer of this node, whatever plan and chat type allow.",
    )
    idle_unload: Seconds | None = Field(
        default=None, gt=0, le=DAY, description="A model that nobody used for so long is unloaded. Without it, never."
    )
    runtime: RuntimeSettings = Field(default_factory=RuntimeSettings)
    models: dict[ModelName, ModelSettings] = Field(default_factory=dict)
    conversations: ConversationSettings = Field(default_factory=ConversationSettings)

    tls: TlsSettings = Field(default_factory=TlsSettings, validate_default=True)

    @field_validator("models")
    @classmethod
    def _clear_names(cls, models: dict[str, ModelSettings]) -> dict[str, ModelSettings]:
        """Else it would depend on who is asked, node or edge, which model a name means."""
        meant: dict[str, str] = {}
        for name, model in models.items():
            for alias in model.aliases:
                if alias == "default" or alias.startswith("chat:"):
                    what = "the default model" if alias == "default" else "a chat type"
                    raise ValueError(f'has the alias "{alias}" for "{name}", which means {what}: choose another name')
                if meant.setdefault(alias, name) != name:
                    raise ValueError(
                        f'has the alias "{alias}" for "{meant[alias]}" and for "{name}": leave it with one of them'
                    )
        return models

    @field_validator("tls")
    @classmethod
    def _known_callers(cls, tls: TlsSettings, info: ValidationInfo) -> TlsSettings:
        """Outside the tailnet nothing but its certificate says who a caller is."""
        listen = info.data.get("listen", "auto")
        if isinstance(addresses.parse_node_listen(listen), addresses.OnInterface) and not tls.on:
            raise ValueError(
                f'is missing: on an interface that is not Tailscale\'s (node.listen = "{listen}") callers are known by'
                " certificates only; set node.tls.certificate, node.tls.key and node.tls.authority"
            )
        return tls
