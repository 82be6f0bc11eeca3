"""Whose word counts when a model is loaded, and what becomes of a load's configuration."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from node.runtime import LoadConfig
from node.runtimes.gguf import read_header
from node.runtimes.llama_child import Order, configure, prompt_batch
from node.runtimes.llama_order import Habits, outcome
from node.runtimes.model_folder import ModelFile
from shared.settings_models import ModelSettings
from tests.runtime_support import DEMO

HEADER = read_header(DEMO)  # trained for 1024 tokens
FILE = ModelFile("demo", DEMO, HEADER, 0.0, Path("/mmproj.gguf"))


def order(habits: Habits | None = None, **config: float) -> Order:
    return (habits or Habits()).order(FILE, "key", LoadConfig(**config))  # pyright: ignore[reportArgumentType]


def of_demo(**settings: object) -> Habits:
    own = ModelSettings.model_validate(settings)
    return Habits(context=512, slots=3, gpu_layers=5, threads=7, models={"demo": own, "other": ModelSettings(slots=9)})


def test_a_load_counts_before_the_model_and_the_model_before_all() -> None:
    common = order(of_demo())
    assert (common.context, common.slots, common.gpu_layers, common.threads) == (512, 3, 5, 7)
    assert (common.rope_base, common.rope_scale, common.pooling, common.projector) == (0, 0, "", "/mmproj.gguf")
    own = of_demo(
        context=256, slots=2, gpu_layers=1, threads=2, rope_frequency_base=5e5, rope_frequency_scale=0.5, pooling="rank"
    )
    chosen = order(own)
    assert (chosen.context, chosen.slots, chosen.gpu_layers, chosen.threads) == (256, 2, 1, 2)
    assert (chosen.rope_base, chosen.rope_scale, chosen.pooling) == (5e5, 0.5, "rank")
    asked = order(
        own, context_length=128, gpu_layers=0, cpu_threads=1, rope_frequency_base=1e6, rope_frequency_scale=1.0
    )
    assert (asked.context, asked.gpu_layers, asked.threads) == (128, 0, 1)
    assert (asked.rope_base, asked.rope_scale, asked.slots) == (1e6, 1.0, 2)


def test_a_ratio_becomes_layers_of_which_the_output_is_one() -> None:
    assert order(gpu_ratio=1.0).gpu_layers == HEADER.layers + 1
    assert order(gpu_ratio=0.0).gpu_layers == 0
    assert order(of_demo(gpu_ratio=1.0)).gpu_layers == HEADER.layers + 1
    assert order(of_demo(gpu_layers=2), gpu_ratio=0.0).gpu_layers == 0, "a load's ratio before the model's layers"
    assert order(gpu_ratio=1.0, gpu_layers=1).gpu_layers == 1


def test_no_context_beyond_what_the_model_was_trained_for() -> None:
    """llama.cpp would cap it (runtimes §2.2), also with other positions."""
    assert order(Habits(context=9999)).context == order(context_length=9999, rope_frequency_scale=0.5).context == 1024
    config = LoadConfig(context_length=9999)
    loaded = outcome(config, Habits().order(FILE, "key", config), gpu=False)
    assert (loaded.applied, loaded.ignored) == ((), ("context_length",)) and "1024 tokens" in loaded.workflow[0]


@pytest.mark.parametrize(
    ("config", "gpu", "ignored"),
    [
        (LoadConfig(), False, ()),
        (LoadConfig(context_length=512, cpu_threads=2, rope_frequency_base=1e6), False, ()),
        (LoadConfig(gpu_ratio=0.5), False, ("gpu_ratio",)),
        (LoadConfig(gpu_layers=-1), False, ("gpu_layers",)),
        (LoadConfig(gpu_layers=0), False, ()),
        (LoadConfig(gpu_ratio=0.5), True, ()),
        (LoadConfig(gpu_ratio=0.5, gpu_layers=2), True, ("gpu_ratio",)),
        (LoadConfig(gpu_ratio=0.5, gpu_layers=2), False, ("gpu_ratio", "gpu_layers")),
    ],
)
def test_what_is_ignored_has_a_sentence(config: LoadConfig, gpu: bool, ignored: tuple[str, ...]) -> None:
    loaded = outcome(config, Habits().order(FILE, "key", config), gpu=gpu)
    assert loaded.ignored == ignored and len(loaded.workflow) == len(ignored)
    assert set(loaded.applied) == set(config.given()) - set(ignored)


def test_what_must_be_read_at_once_is_one_batch() -> None:
    """llama.cpp refuses an input that is larger than its batch."""
    two = replace(order(of_demo(pooling="mean")), slots=2)
    assert prompt_batch(two, gpu=False) == 512
    assert prompt_batch(replace(two, context=300), gpu=False) == 512, "as llama.cpp rounds it"
    large = replace(order(), parameters=8_000_000_000)
    assert prompt_batch(large, gpu=False) == 512, "an image may be read like that, too"
    assert prompt_batch(replace(large, projector=""), gpu=False) == 16


def test_what_the_process_is_told_reaches_llama_cpp() -> None:
    import xllamacpp

    params = xllamacpp.CommonParams()  # type: ignore[attr-defined]
    configure(params, order(of_demo(pooling="rank", rope_frequency_base=5e5, rope_frequency_scale=0.5)), 32)
    assert params.embedding and params.pooling_type.name == "LLAMA_POOLING_TYPE_RANK"
    assert (params.rope_freq_base, params.rope_freq_scale, params.mmproj.path) == (5e5, 0.5, "/mmproj.gguf")
    plain = xllamacpp.CommonParams()  # type: ignore[attr-defined]
    configure(plain, Habits().order(ModelFile("demo", DEMO, HEADER, 0.0), "key", LoadConfig()), 32)
    assert (plain.embedding, plain.rope_freq_scale, plain.mmproj.path) == (False, 0.0, "")


def test_an_xllamacpp_that_cannot_pool_is_refused() -> None:
    with pytest.raises(AttributeError):
        configure(SimpleNamespace(model=SimpleNamespace(path="")), order(of_demo(pooling="mean")), 32)
