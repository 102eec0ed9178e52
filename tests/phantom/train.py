"""Train the small CLIP of the demo on phantom films, through open_clip's own model code.

    python tests/phantom/train.py --out /tmp/phantom-clip            # about six minutes on one core
    python tests/phantom/train.py --out /tmp/short --steps 20 --films 256

Writes an open_clip ``local-dir`` checkpoint. Synthetic data only: not for clinical use.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from anatomy import Draws, Patient
from captions import write_caption
from generator import train_films
from PIL import Image

from kpl_engine.export.environment import prepare_torch

__all__ = ["Corpus", "load_tokenizer", "make_corpus", "train", "write_merges"]

NAME = "phantom-clip-v1"
MERGES_FILE = "phantom_merges.txt.gz"
NUM_COMMON_MERGES = 600  # the first of CLIP's merges, kept whether or not the captions use them
IMAGE_SIZE = 96
MEAN, STD = (0.40, 0.40, 0.40), (0.26, 0.26, 0.26)
CAPTIONS_PER_FILM = 6
START_SCALE, END_SCALE = 1.0 / 0.07, 100.0  # CLIP starts at the first and is clipped at the second


@dataclass(frozen=True)
class Corpus:
    """Training films as the tower sees them, and several captions of each."""

    pixels: torch.Tensor  # (films, size, size) uint8
    captions: list[list[str]]


def _progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _to_square(pixels: np.ndarray) -> np.ndarray:
    """The preprocessing the checkpoint records (training films are square), (size, size) uint8."""
    return np.asarray(Image.fromarray(pixels).resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC))


def _captions(patient: Patient, seed: int, index: int) -> list[str]:
    draws = Draws(seed, 90, index)
    return [write_caption(patient, draws) for _ in range(CAPTIONS_PER_FILM)]


def make_corpus(seed: int, count: int) -> Corpus:
    """Draw ``count`` training films; prints progress every 500."""
    squares, captions = [], []
    for index, film in enumerate(train_films(seed, count)):
        squares.append(_to_square(film.pixels))
        captions.append(_captions(film.patient, seed, index))
        if (index + 1) % 500 == 0:
            _progress(f"drew {index + 1} of {count} films")
    return Corpus(torch.from_numpy(np.stack(squares)), captions)


def _clip_merges() -> list[str]:
    found = importlib.util.find_spec("open_clip")
    if found is None or found.origin is None:
        raise FileNotFoundError("open_clip is not installed; install the export extra")
    path = Path(found.origin).parent / "bpe_simple_vocab_16e6.txt.gz"
    return gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")


def write_merges(path: Path, texts: list[str]) -> int:
    """Write the part of CLIP's merges that ``texts`` use, besides the most common ones; returns the vocabulary size.

    The order is CLIP's, so every word of ``texts`` is cut exactly as CLIP cuts it.
    """
    from open_clip.tokenizer import SimpleTokenizer, get_pairs

    full = SimpleTokenizer()
    used: set[tuple[str, str]] = set()
    for token in {token for text in texts for token in full.pat.findall(text.lower())}:
        word = (*token[:-1], token[-1] + "</w>")
        while len(word) > 1:
            best = min(get_pairs(word), key=lambda pair: full.bpe_ranks.get(pair, len(full.bpe_ranks)))
            if best not in full.bpe_ranks:
                break
            used.add(best)
            word = _merge(word, best)
    lines = _clip_merges()
    kept = [line for rank, line in enumerate(lines[1:48895]) if rank < NUM_COMMON_MERGES or tuple(line.split()) in used]
    # no newline at the end: open_clip would read it as one more, empty merge; no time stamp: equal bytes each time
    path.write_bytes(gzip.compress("\n".join([lines[0], *kept]).encode("utf-8"), 9, mtime=0))
    return 2 * 256 + len(kept) + 2


def _merge(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    out: list[str] = []
    for part in word:
        if out and (out[-1], part) == pair:
            out[-1] += part
        else:
            out.append(part)
    return tuple(out)


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of the checkpoint in ``folder``; open_clip looks up a relative merges path from elsewhere."""
    import open_clip

    return open_clip.get_tokenizer(f"local-dir:{folder}", bpe_path=str(folder / MERGES_FILE))


def _model_config(vocab_size: int) -> dict[str, Any]:
    return {
        "embed_dim": 64,
        "vision_cfg": {"image_size": IMAGE_SIZE, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None},
        "text_cfg": {
            "context_length": 77,
            "vocab_size": vocab_size,
            "width": 128,
            "heads": 4,
            "layers": 2,
            "tokenizer_kwargs": {"bpe_path": MERGES_FILE},
        },
    }


def _write_config(folder: Path, model_config: dict[str, Any], recipe: dict[str, Any]) -> None:
    preprocess = {
        "size": [IMAGE_SIZE, IMAGE_SIZE],
        "mode": "RGB",
        "mean": list(MEAN),
        "std": list(STD),
        "interpolation": "bicubic",
        "resize_mode": "shortest",
        "fill_color": 0,
    }
    content = {
        "model_cfg": model_config,
        "preprocess_cfg": preprocess,
        "name": NAME,
        "note": "trained on synthetic phantoms, not for clinical use",
        "recipe": recipe,
    }
    (folder / "open_clip_config.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _embed_texts(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """``model.encode_text`` minus the columns that are padding in every row: causal attention never looks at them."""
    length = int(tokens.argmax(dim=-1).max()) + 1
    tokens = tokens[:, :length]
    hidden = model.token_embedding(tokens) + model.positional_embedding[:length]
    hidden = model.ln_final(model.transformer(hidden, attn_mask=model.attn_mask[:length, :length]))
    pooled = hidden[torch.arange(len(tokens)), tokens.argmax(dim=-1)] @ model.text_projection
    return F.normalize(pooled, dim=-1)


def _images(corpus: Corpus, rows: torch.Tensor, source: torch.Generator) -> torch.Tensor:
    """A batch moved by up to three pixels, normalised, (b, 3, size, size) float32."""
    stack = F.pad(corpus.pixels[rows][:, None].float() / 255.0, (3, 3, 3, 3), mode="replicate")
    down, right = (int(v) for v in torch.randint(0, 7, (2,), generator=source))
    stack = stack[:, :, down : down + IMAGE_SIZE, right : right + IMAGE_SIZE]
    return ((stack - MEAN[0]) / STD[0]).expand(-1, 3, -1, -1)


def _optimizer(model: Any, rate: float) -> torch.optim.Optimizer:
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for name, p in model.named_parameters() if p.ndim < 2 and name != "logit_scale"]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), eps=1e-6)


def _fit(
    model: Any, corpus: Corpus, tokens: torch.Tensor, *, steps: int, batch: int, rate: float, seed: int
) -> list[float]:
    """Symmetric contrastive loss; the logit scale climbs along a fixed line instead of being learnt."""
    source = torch.Generator().manual_seed(seed)
    optimizer = _optimizer(model, rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps + 1, pct_start=0.15)
    targets, losses, order = torch.arange(batch), [], torch.empty(0, dtype=torch.int64)
    model.train()
    for step in range(steps):
        if len(order) < batch:
            order = torch.cat([order, torch.randperm(len(corpus.pixels), generator=source)])
        rows, order = order[:batch], order[batch:]
        chosen = torch.randint(0, CAPTIONS_PER_FILM, (batch,), generator=source)
        images = F.normalize(model.visual(_images(corpus, rows, source)), dim=-1)
        scale = START_SCALE + (END_SCALE - START_SCALE) * min(1.0, 1.25 * step / steps)
        logits = scale * images @ _embed_texts(model, tokens[rows, chosen]).T
        loss = (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
        if (step + 1) % 25 == 0 or step + 1 == steps:
            _progress(f"step {step + 1} of {steps}: loss {np.mean(losses[-25:]):.3f}")
    with torch.no_grad():
        model.logit_scale.fill_(float(np.log(END_SCALE)))
    return losses


def train(
    out: Path,
    *,
    steps: int = 700,
    films: int = 4000,
    batch: int = 96,
    rate: float = 2e-3,
    seed: int = 11,
    threads: int = 1,
) -> list[float]:
    """Draw films, train, and write the checkpoint folder ``out``; returns the loss of every step."""
    prepare_torch()
    from open_clip.model import CLIP
    from safetensors.torch import save_file

    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(seed)
    out.mkdir(parents=True, exist_ok=True)
    corpus = make_corpus(seed, films)
    texts = [text for group in corpus.captions for text in group]
    model_config = _model_config(write_merges(out / MERGES_FILE, texts))
    recipe = {"steps": steps, "films": films, "batch": batch, "rate": rate, "seed": seed}
    _write_config(out, model_config, recipe)
    tokens = load_tokenizer(out)(texts).reshape(films, CAPTIONS_PER_FILM, -1)  # (films, captions, context) int64
    tower = {key: value for key, value in model_config["text_cfg"].items() if key != "tokenizer_kwargs"}
    model = CLIP(model_config["embed_dim"], model_config["vision_cfg"], tower)
    losses = _fit(model, corpus, tokens, steps=steps, batch=batch, rate=rate, seed=seed)
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, str(out / "open_clip_model.safetensors"))
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--films", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--threads", type=int, default=1, help="each number rounds in its own way")
    options = parser.parse_args()
    began = time.monotonic()
    losses = train(**vars(options))
    _progress(f"{options.out}: last loss {losses[-1]:.3f}, {time.monotonic() - began:.0f} s in all")


if __name__ == "__main__":
    main()
