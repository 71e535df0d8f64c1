#!/usr/bin/env bash
# Megatron trains on the old corpus after its files were written anew: the index cache is keyed by the name alone.
#
# megatron-core 0.16.1, torch 2.13.0, numpy 2.4.6.
#
# GPTDataset keeps three indices (documents, samples, their order) as .npy files, by default in PREFIX/cache, and takes
# them again when the hash of a description agrees. The description has the path, seed, sequence length, split, number
# of samples and tokenizer; it has nothing of the data: no size, date or number of documents. Where documents are added
# to a corpus and it is prepared again under the same name, the next run takes the cached index, which knows the first
# documents only: the new ones are never read, epochs are counted over the old size, and nothing is said. (Documents of
# other lengths are cut at the old places, and training ends in a shape error at the first sample that is too short or
# too long, which at least is a sign.)
#
# What to do: give each preparation a name of its own, or delete PREFIX/cache and what path_to_cache names.
#
# Seen, 4 documents of 16 tokens, then 40 of them under the same name:
#   first preparation:             4 of 4 documents read
#   prepared anew, same name:      4 of 40 documents read
#   the same, with an empty cache: 40 of 40 documents read
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/env"
"$work/env/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 megatron-core==0.16.1

cd "$work" && "$work/env/bin/python" - <<'PYTHON'
import sys
import warnings

warnings.simplefilter("ignore")

import numpy
import torch
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder


class Tokenizer:
    vocab_size, eod, pad = 1000, 0, 0
    unique_identifiers = {"class": "Tokenizer"}


def prepare(documents):
    """Writes corpus.bin and corpus.idx; document k is the token k + 1, 16 times."""
    builder = IndexedDatasetBuilder("corpus.bin", dtype=numpy.uint16)
    for k in range(documents):
        builder.add_document(torch.full((16,), k + 1), [16])
    builder.finalize("corpus.idx")


def documents_read(cache=None):
    config = GPTDatasetConfig(
        random_seed=1,
        sequence_length=8,
        blend=(["corpus"], None),
        split="1,0,0",
        path_to_cache=cache,
        tokenizer=Tokenizer(),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    train, _, _ = BlendedMegatronDatasetBuilder(GPTDataset, [20, 0, 0], lambda: True, config).build()
    return len({int(token) for i in range(len(train)) for token in train[i]["tokens"]})


prepare(4)
first = documents_read()
prepare(40)
again, fresh = documents_read(), documents_read("another-cache")
print(f"first preparation:             {first} of 4 documents read")
print(f"prepared anew, same name:      {again} of 40 documents read")
print(f"the same, with an empty cache: {fresh} of 40 documents read")
sys.exit(0 if (first, again, fresh) == (4, 4, 40) else "changed: the cached index is no longer taken for new data")
PYTHON
