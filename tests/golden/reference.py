"""The model's forward pass in double precision, from the file's tensors as the package gguf dequantises them.

Independent of the core: another reader, another decoder of the blocks, other arithmetic. A prompt at once, [n_tokens, n_vocab].

With `rounded`, what the engine documents that it rounds is rounded here too: activations that meet quantised weights, to 8 bits in
groups of 32, and keys and values, to float16. What is left between the two is the order of float32 sums.
"""
import gguf
import numpy as np


FLOATS = (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16, gguf.GGMLQuantizationType.BF16)


class Weight:
    def __init__(self, values, is_float):
        self.values, self.is_float = values, is_float

    def product(self, x, rounded):
        """x . W^T"""
        return (x if self.is_float or not rounded else in_8_bits(x)) @ self.values.T


def in_8_bits(x):
    groups = x.astype(np.float32).reshape(len(x), x.shape[-1] // 32, 32)
    scale = np.abs(groups).max(-1, keepdims=True) / np.float32(127)
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale > 0)
    return (np.rint(groups * inverse).astype(np.float64) * scale).reshape(x.shape)


class Model:
    def __init__(self, path, rounded):
        self.rounded = rounded
        reader = gguf.GGUFReader(path)
        self.keys = {name: field.contents() for name, field in reader.fields.items() if name.startswith("llama.")}
        self.tensors = {t.name: t for t in reader.tensors}
        self.eps = self.key("attention.layer_norm_rms_epsilon")
        self.heads = self.key("attention.head_count")
        self.kv_heads = self.key("attention.head_count_kv", self.heads)
        self.head_dim = self.key("attention.key_length", self.key("embedding_length") // self.heads)
        self.experts = self.key("expert_count", 0)

    def key(self, name, default=None):
        return self.keys.get("llama." + name, default)

    def tensor(self, name):
        t = self.tensors[name]
        return gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float64)

    def product(self, x, name):
        return Weight(self.tensor(name), self.tensors[name].tensor_type in FLOATS).product(x, self.rounded)

    def expert_product(self, x, layer, part, index):
        """Of either layout, or of a dense model."""
        for name in (f"blk.{layer}.ffn_{part}_exps.weight", f"blk.{layer}.ffn_{part}.{index}.weight",
                     f"blk.{layer}.ffn_{part}.weight"):
            if name in self.tensors:
                w = self.tensor(name)
                weight = Weight(w[index] if w.ndim == 3 else w, self.tensors[name].tensor_type in FLOATS)
                return weight.product(x, self.rounded)
        raise KeyError(part)


def rms_norm(x, weight, eps):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight


def rope(x, model):
    """[n_tokens, heads, head_dim]: adjacent pairs are turned by position * base^(-2i / dims)."""
    dims = model.key("rope.dimension_count", model.head_dim)
    frequency = model.key("rope.freq_base", 10000.0) ** (-np.arange(0, dims, 2) / dims)
    angle = np.arange(len(x))[:, None] * frequency / model.key("rope.scaling.factor", 1.0)
    cosine, sine = np.cos(angle)[:, None], np.sin(angle)[:, None]
    even, odd, y = x[..., 0:dims:2], x[..., 1:dims:2], x.copy()
    y[..., 0:dims:2] = even * cosine - odd * sine
    y[..., 1:dims:2] = even * sine + odd * cosine
    return y


def attention(x, layer, model):
    n = len(x)

    def project(name, heads):
        return model.product(x, f"blk.{layer}.attn_{name}.weight").reshape(n, heads, model.head_dim)

    q, k = rope(project("q", model.heads), model), rope(project("k", model.kv_heads), model)
    v, shared = project("v", model.kv_heads), model.heads // model.kv_heads
    if model.rounded:
        k, v = k.astype(np.float16).astype(np.float64), v.astype(np.float16).astype(np.float64)
    k, v = np.repeat(k, shared, 1), np.repeat(v, shared, 1)
    scores = np.einsum("ihd,jhd->hij", q, k) / np.sqrt(model.head_dim)
    scores[:, np.triu(np.ones((n, n), bool), 1)] = -np.inf
    p = np.exp(scores - scores.max(-1, keepdims=True))
    out = np.einsum("hij,jhd->ihd", p / p.sum(-1, keepdims=True), v)
    return model.product(out.reshape(n, -1), f"blk.{layer}.attn_output.weight")


def feed_forward(x, layer, model, index):
    gate = model.expert_product(x, layer, "gate", index)
    hidden = gate / (1 + np.exp(-gate)) * model.expert_product(x, layer, "up", index)
    return model.expert_product(hidden, layer, "down", index)


def mixture(x, layer, model):
    if not model.experts:
        return feed_forward(x, layer, model, 0)
    scores = x @ model.tensor(f"blk.{layer}.ffn_gate_inp.weight").T
    chosen = np.argsort(-scores, 1, kind="stable")[:, :model.key("expert_used_count")]
    weight = np.exp(np.take_along_axis(scores, chosen, 1) - scores.max(1, keepdims=True))
    weight /= weight.sum(1, keepdims=True)
    out = np.zeros_like(x)
    for e in range(model.experts):
        token, rank = np.nonzero(chosen == e)
        out[token] += weight[token, rank, None] * feed_forward(x[token], layer, model, e)
    return out


def logits(path, ids, rounded=False):
    model = Model(path, rounded)
    embedding = model.tensor("token_embd.weight")
    x = embedding[np.asarray(ids, dtype=np.int64)]
    for layer in range(model.key("block_count")):
        x = x + attention(rms_norm(x, model.tensor(f"blk.{layer}.attn_norm.weight"), model.eps), layer, model)
        x = x + mixture(rms_norm(x, model.tensor(f"blk.{layer}.ffn_norm.weight"), model.eps), layer, model)
    output = "output.weight" if "output.weight" in model.tensors else "token_embd.weight"
    return model.product(rms_norm(x, model.tensor("output_norm.weight"), model.eps), output)
