"""What every library trains here: a GPT-2 of two layers with dropout, on the same samples every time."""

import torch
from transformers import GPT2Config, GPT2LMHeadModel

LENGTH, VOCABULARY, BATCH, STEPS = 16, 40, 2, 4
SETTINGS = ["selective", "attention", "full"]


class Samples(torch.utils.data.Dataset):
    def __len__(self):
        return 24

    def __getitem__(self, number):
        sample = torch.randint(VOCABULARY, (LENGTH,), generator=torch.Generator().manual_seed(number))
        return {"input_ids": sample, "labels": sample}


def gpt2():
    """In training mode, with the same weights every time."""
    torch.manual_seed(0)
    sizes = {"n_layer": 2, "n_embd": 32, "n_head": 4, "n_positions": LENGTH, "vocab_size": VOCABULARY}
    return GPT2LMHeadModel(GPT2Config(**sizes, use_cache=False, bos_token_id=0, eos_token_id=0)).train()


def batches():
    return torch.utils.data.DataLoader(Samples(), BATCH)


def copies(tensors):
    return [tensor.detach().clone() for tensor in tensors]


def assert_same(expected, found):
    """The same tensors, bit for bit."""
    assert len(expected) == len(found) > 0
    different = [number for number, pair in enumerate(zip(expected, found, strict=True)) if not torch.equal(*pair)]
    assert different == []
