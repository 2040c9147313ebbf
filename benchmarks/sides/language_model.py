"""A language model of one token a step: the same Llama-type network and the same random weights in every side.

A repetition is `prompt` tokens of prefill and `new` tokens drawn from them (temperature 0.8, top-k 50, no end token);
timed is what comes after the first drawn token, so that prefill has rows of its own.
`check`: greedy tokens of the same weights, which must be those of the other sides.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, nn

TEMPERATURE, TOP_K = 0.8, 50
SIZES: dict[str, dict[str, int]] = {
    "tiny": {"width": 64, "layers": 2, "heads": 2, "hidden": 172, "vocab": 128},
    "5M": {"width": 256, "layers": 6, "heads": 4, "hidden": 688, "vocab": 1026},
    "20M": {"width": 512, "layers": 6, "heads": 8, "hidden": 1376, "vocab": 1026},
    "120M": {"width": 896, "layers": 12, "heads": 14, "hidden": 2432, "vocab": 1026},
    "350M": {"width": 1280, "layers": 18, "heads": 20, "hidden": 3456, "vocab": 1026},
}


def weights(size: str) -> dict[str, Tensor]:
    """Random weights by name, the same in every process."""
    s, dice = SIZES[size], torch.Generator().manual_seed(0)

    def matrix(outputs: int, inputs: int) -> Tensor:
        return torch.randn(outputs, inputs, generator=dice) * inputs**-0.5

    held = {"table": torch.randn(s["vocab"], s["width"], generator=dice), "head": matrix(s["vocab"], s["width"])}
    for i in range(s["layers"]):
        held |= {
            f"{i}.qkv": matrix(3 * s["width"], s["width"]),
            f"{i}.out": matrix(s["width"], s["width"]),
            f"{i}.gate_up": matrix(2 * s["hidden"], s["width"]),
            f"{i}.down": matrix(s["width"], s["hidden"]),
        }
    return held


def tokens(size: str, count: int) -> Tensor:
    """The prompt: LongTensor `[1, count]`."""
    return torch.randint(0, SIZES[size]["vocab"], (1, count), generator=torch.Generator().manual_seed(1))


class Stopwatch:
    """What passes from the first token on; also a `streamer` of `transformers`, which hands every token to `put`."""

    def __init__(self, prompt: bool = False) -> None:
        self.early = 2 if prompt else 1  # a streamer is given the prompt, too
        self.seen, self.wall, self.cpu = 0, 0.0, 0.0

    def put(self, token: Any) -> None:
        self.seen += 1
        if self.seen == self.early:
            self.wall, self.cpu = time.perf_counter(), time.process_time()

    def end(self) -> None:
        pass

    def stop(self) -> dict[str, Any]:
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.synchronize()
        wall, cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu
        return {"units": self.seen - self.early, "wall": wall, "cpu": cpu}


# -- ours -------------------------------------------------------------------------------------------------------------
def backbone(size: str, window: int, chunk: int) -> Any:
    from quaver.nn.transformer import Transformer, TransformerConfig

    s = SIZES[size]
    sizes: dict[str, Any] = {k: s[k] for k in ("width", "layers", "heads", "hidden")}
    return Transformer(TransformerConfig(**sizes, window=window, slack=chunk - 1, qk_norm=False, eps=1e-6)).eval()


class Plain(nn.Module):
    """Table, backbone and head, with their state; what a step of `nn/` costs with nothing around it."""

    def __init__(self, size: str, window: int, chunk: int, half: bool, device: str = "cpu") -> None:
        super().__init__()
        from quaver.nn.packed import lay_out_linears, pack_linears
        from quaver.nn.state import State

        s, held = SIZES[size], weights(size)
        self.table, self.head = nn.Embedding(s["vocab"], s["width"]), nn.Linear(s["width"], s["vocab"], bias=False)
        self.backbone, self.chunk = backbone(size, window, chunk), chunk
        named = {"table.weight": held["table"], "head.weight": held["head"]}
        for i in range(s["layers"]):
            for ours, theirs in (("attention.qkv", "qkv"), ("attention.out", "out")):
                named[f"backbone.layers.{i}.{ours}.weight"] = held[f"{i}.{theirs}"]
            named |= {f"backbone.layers.{i}.{x}.weight": held[f"{i}.{x}"] for x in ("gate_up", "down")}
        missing = self.load_state_dict(named, strict=False)
        assert not missing.unexpected_keys
        assert all("norm" in name for name in missing.missing_keys)
        self.parameters_held = sum(p.numel() for p in self.parameters())
        if device == "cpu":
            (pack_linears if half else lay_out_linears)(self)  # as models are loaded
        else:
            self.to(device, torch.bfloat16 if half else torch.float32)
        self.state = State(1)
        self.state.child("backbone", self.backbone)
        self.state.add("token", dtype=torch.long, device=torch.device(device))

    def prefill(self, prompt: Tensor) -> Tensor:
        """All but the last token go into the cache, `chunk` at a time; the last is the next step's input."""
        self.state.reset()
        hidden = torch.zeros(())
        for piece in prompt[:, :-1].split(self.chunk, 1):
            hidden = self.backbone(self.table(piece), self.state.child("backbone"))
        self.state.update("token", prompt[:, -1])
        return hidden

    def step(self, uniform: Tensor, temperature: float = TEMPERATURE) -> tuple[Tensor]:
        from quaver.tts.sampling import SamplingConfig, sample_code

        hidden = self.backbone(self.table(self.state["token"])[:, None], self.state.child("backbone"))
        config = SamplingConfig(temperature=temperature, top_k=TOP_K)
        code = sample_code(self.head(hidden[:, -1]), config, uniform)
        self.state.update("token", code)
        return (code,)


@torch.inference_mode()
def ours(
    size: str, prompt: int, new: int, half: bool = False, recorded: bool = True, device: str = "cpu"
) -> tuple[Any, dict[str, Any]]:
    """The step of `nn/` with a static state, sampled, recorded as live sessions are (`nn/recorded.py`)."""
    from quaver.benchmarks import roofline
    from quaver.nn.recorded import record

    model = Plain(size, prompt + new, min(prompt, 64), half, device)
    given = tokens(size, prompt).to(device)
    model.prefill(given)
    check = [int(model.step(torch.zeros(1, device=device), 0.0)[0]) for _ in range(8)]
    trials = [(torch.full((1,), 0.1 * i, device=device),) for i in range(4)]
    step = (record(model.step, model.state, [model], trials) if recorded else None) or model.step
    dice = torch.Generator().manual_seed(2)

    @torch.inference_mode()
    def call() -> dict[str, Any]:
        model.prefill(given)
        watch = Stopwatch()
        for _ in range(new):
            # A caller looks at every token.
            watch.put(int(step(torch.rand(1, generator=dice).to(device))[0]))
        return watch.stop()

    s, size_of = SIZES[size], 2 if half else 4
    # The ring is read whole at every step, behind a mask.
    cost = roofline.transformer(
        s["width"], s["layers"], s["hidden"], prompt + new + model.chunk - 1, weight_bytes=size_of
    ) + roofline.linear(s["width"], s["vocab"], weight_bytes=size_of)
    info = {"parameters": model.parameters_held, "read": cost.read, "flops": cost.flops}
    return call, info | ({} if half else {"check": check})


@torch.inference_mode()
def spoken(size: str, prompt: int, new: int) -> tuple[Any, dict[str, Any]]:
    """The whole loop of token models (`tts/generate.py`: plans, guards, rollback marks), half-precision weights, as
    `quaver say` runs it."""
    from quaver.nn.packed import pack_linears
    from quaver.tts.generate import Generation
    from quaver.tts.sampling import SamplingConfig
    from quaver.tts.token_lm import TokenLM, TokenLMConfig
    from quaver.tts.token_plan import TokenRequest

    torch.manual_seed(0)
    s = SIZES[size]
    sizes = {k: s[k] for k in ("width", "layers", "heads", "hidden")}
    sizes |= {"window": prompt + new + 8, "slack": min(prompt, 64) - 1, "qk_norm": False}
    config: dict[str, Any] = {"vocab": s["vocab"] - 2, "backbone": sizes}
    lm = TokenLM(TokenLMConfig.model_validate(config)).eval()
    parameters = sum(p.numel() for p in lm.parameters())
    pack_linears(lm)
    loop = Generation(lm)
    sampling = SamplingConfig(temperature=TEMPERATURE, top_k=TOP_K)
    text = [5 + i % 40 for i in range(prompt)]

    def call() -> dict[str, Any]:
        plan = loop.join(0, TokenRequest(text, least=new, most=new, sampling=sampling))
        watch = Stopwatch()
        while not plan.done:
            for frame in loop.tick().values():
                watch.put(frame)
        loop.leave(0)
        assert watch.seen == new
        return watch.stop()

    return call, {"parameters": parameters}


# -- transformers -----------------------------------------------------------------------------------------------------
def llama(size: str, longest: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    s = SIZES[size]
    config = LlamaConfig(
        vocab_size=s["vocab"], hidden_size=s["width"], intermediate_size=s["hidden"], num_hidden_layers=s["layers"],
        num_attention_heads=s["heads"], num_key_value_heads=s["heads"], rms_norm_eps=1e-6,
        max_position_embeddings=longest, tie_word_embeddings=False, bos_token_id=None, eos_token_id=None,
        pad_token_id=0, attention_bias=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    held, named = weights(size), dict[str, Tensor]()
    named |= {"model.embed_tokens.weight": held["table"], "lm_head.weight": held["head"]}
    for i in range(s["layers"]):
        layer = f"model.layers.{i}"
        for name, part in zip("qkv", held[f"{i}.qkv"].chunk(3)):
            named[f"{layer}.self_attn.{name}_proj.weight"] = part
        named[f"{layer}.self_attn.o_proj.weight"] = held[f"{i}.out"]
        for name, part in zip(("gate", "up"), held[f"{i}.gate_up"].chunk(2)):
            named[f"{layer}.mlp.{name}_proj.weight"] = part
        named[f"{layer}.mlp.down_proj.weight"] = held[f"{i}.down"]
    missing = model.load_state_dict(named, strict=False)
    assert not missing.unexpected_keys
    assert all("norm" in name for name in missing.missing_keys)
    return model


def transformers(
    size: str, prompt: int, new: int, cache: str = "static", half: bool = False, device: str = "cpu"
) -> tuple[Any, dict[str, Any]]:
    """`LlamaForCausalLM.generate` of package `transformers`, with a static or a dynamic cache. (`half`: of a GPU.)"""
    model = llama(size, prompt + new).to(device, torch.bfloat16 if half else torch.float32)
    given = tokens(size, prompt).to(device)
    more: dict[str, Any] = {"cache_implementation": "static"} if cache == "static" else {}
    greedy = model.generate(given, attention_mask=torch.ones_like(given), max_new_tokens=8, do_sample=False, **more)

    def call() -> dict[str, Any]:
        watch = Stopwatch(prompt=True)
        made = model.generate(
            given,
            streamer=watch,
            attention_mask=torch.ones_like(given),
            do_sample=True,
            temperature=TEMPERATURE,
            top_k=TOP_K,
            min_new_tokens=new,
            max_new_tokens=new,
            **more,
        )
        assert made.shape[1] == prompt + new == watch.seen - 1 + prompt, "it stopped early, which would look like speed"
        return watch.stop()

    return call, {"parameters": sum(p.numel() for p in model.parameters()), "check": greedy[0, prompt:].tolist()}


# -- prefill ----------------------------------------------------------------------------------------------------------
@torch.inference_mode()
def ours_prefill(
    size: str, prompt: int, chunk: int, half: bool = False, device: str = "cpu"
) -> tuple[Any, dict[str, Any]]:
    """`prompt` tokens into the cache, `chunk` at a time."""
    from quaver.benchmarks import roofline

    model = Plain(size, prompt, chunk, half, device)
    given = torch.cat([tokens(size, prompt), torch.zeros(1, 1, dtype=torch.long)], 1).to(device)

    @torch.inference_mode()
    def call() -> dict[str, Any]:
        model.prefill(given)
        return {"units": prompt}

    s = SIZES[size]
    cost = roofline.transformer(s["width"], s["layers"], s["hidden"], prompt + chunk - 1, chunk) * (1 / chunk)
    return call, {"parameters": model.parameters_held, "read": cost.read, "flops": cost.flops}


def transformers_prefill(size: str, prompt: int, half: bool = False, device: str = "cpu") -> tuple[Any, dict[str, Any]]:
    """One forward of the decoder into a static cache."""
    from transformers import StaticCache

    model = llama(size, prompt).model.to(device, torch.bfloat16 if half else torch.float32)
    given = tokens(size, prompt).to(device)

    @torch.inference_mode()
    def call() -> dict[str, Any]:
        cache = StaticCache(config=model.config, max_cache_len=prompt)
        model(given, past_key_values=cache, use_cache=True)
        return {"units": prompt}

    return call, {"parameters": sum(p.numel() for p in model.parameters())}
