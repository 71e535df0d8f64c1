"""Megatron-LM's own IndexedDataset reads what we write, and we read what its builder writes."""

import json

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from megaselect.data.index_file import write_index
from megaselect.data.indexed_dataset import IndexedDataset, IndexedDatasetWriter
from megaselect.errors import DataError

DTYPES = ["uint8", "int8", "int16", "int32", "int64", "uint16"]

# A process of its own, since Megatron-LM takes seconds to import and changes settings of torch.
MEGATRON = """
import importlib.util, json, sys, types, warnings
warnings.simplefilter("ignore")
import numpy, torch
# Packages whose __init__ is not run: it imports all of Megatron-LM's models, which takes five times as long.
[root] = importlib.util.find_spec("megatron").submodule_search_locations
for name, path in (("megatron.core", "core"), ("megatron.core.datasets", "core/datasets")):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [f"{root}/{path}"]
import megatron.core.parallel_state  # or else it and megatron.core.utils import each other
from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder

def write(prefix, dtype, documents, modes):
    builder = IndexedDatasetBuilder(f"{prefix}.bin", getattr(numpy, dtype), multimodal=modes is not None)
    modes = iter(modes or [])
    for number, document in enumerate(documents):
        of_sequences = [next(modes, 0) for _ in document]
        if number % 2:
            tokens = [token for sequence in document for token in sequence]
            builder.add_document(torch.tensor(tokens, dtype=torch.int64), list(map(len, document)), of_sequences)
        else:
            for sequence, mode in zip(document, of_sequences):
                builder.add_item(torch.tensor(sequence, dtype=torch.int64), mode)
            builder.end_document()
    builder.finalize(f"{prefix}.idx")

def read(prefix, multimodal):
    dataset = IndexedDataset(prefix, multimodal=multimodal)
    items = [dataset[number] for number in range(len(dataset))]
    modes = [int(item[1]) for item in items] if multimodal else None
    sequences = [(item[0] if multimodal else item).tolist() for item in items]
    return [numpy.dtype(dataset.index.dtype).name, sequences, dataset.document_indices.tolist(), modes]

for line in sys.stdin:
    name, arguments = json.loads(line)
    print(json.dumps({"write": write, "read": read}[name](*arguments)), flush=True)
"""


@pytest.fixture(scope="module")
def megatron(start_python):
    """`megatron(name, *arguments)` calls write or read in the process that has Megatron-LM."""
    child = start_python(MEGATRON)

    def call(name, *arguments):
        child.stdin.write(json.dumps([name, arguments]) + "\n")
        child.stdin.flush()
        answer = child.stdout.readline()
        if not answer:
            pytest.fail(child.communicate()[1])
        return json.loads(answer)

    yield call
    child.kill()  # it takes seconds to leave by itself
    child.communicate()


@pytest.fixture(scope="module")
def prefix(tmp_path_factory):
    return str(tmp_path_factory.mktemp("datasets") / "text.v1")


def sequences_and_bounds(documents):
    bounds = np.cumsum([0, *map(len, documents)]).tolist()
    return [sequence for document in documents for sequence in document], bounds


@st.composite
def corpora(draw):
    """A dtype and documents of sequences of token ids: empty documents and sequences too, but a token somewhere."""
    dtype = draw(st.sampled_from(DTYPES))
    info = np.iinfo(dtype)
    sequences = st.lists(st.integers(int(info.min), int(info.max)), max_size=4)
    documents = draw(st.lists(st.lists(sequences, max_size=3), max_size=4))
    assume(any(sequence for document in documents for sequence in document))
    return dtype, documents


EXTREMES = [
    (dtype, [[[int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)], []], [], [[7], [0, 1]]]) for dtype in DTYPES
]


def for_any_corpus(test):
    """Random ones, with modes and without, and the extremes of each dtype."""
    for number, corpus in enumerate(EXTREMES):
        test = example(corpus, number % 2 == 1)(test)
    return given(corpora(), st.booleans())(settings(max_examples=60, deadline=None)(test))


@for_any_corpus
def test_what_megatron_writes_is_read(megatron, prefix, corpus, multimodal):
    dtype, documents = corpus
    sequences, bounds = sequences_and_bounds(documents)
    megatron(
        "write", prefix, dtype, documents, [number % 2 for number in range(len(sequences))] if multimodal else None
    )
    dataset = IndexedDataset(prefix)
    assert dataset.dtype == np.dtype(dtype)
    assert [sequence.tolist() for sequence in dataset] == sequences
    assert dataset.tokens.tolist() == [token for sequence in sequences for token in sequence]
    assert dataset.document_bounds.tolist() == bounds
    assert dataset.num_documents == len(documents)


@for_any_corpus
def test_megatron_reads_our_index_of_any_dtype(megatron, prefix, corpus, multimodal):
    """Documents of at least one sequence, of which the later ones continue the first; modes as multimodal data has."""
    dtype, documents = corpus
    documents = [document or [[]] for document in documents]
    sequences, bounds = sequences_and_bounds(documents)
    lengths = np.array([len(sequence) for sequence in sequences], "<i4")
    modes = [number % 3 for number in range(len(sequences))]
    with open(f"{prefix}.bin", "wb") as file:
        file.write(np.array([token for sequence in sequences for token in sequence], dtype).tobytes())
    with open(f"{prefix}.idx", "wb") as file:
        write_index(file, np.dtype(dtype), lengths, sorted(set(range(len(sequences))) - set(bounds)))
        file.write(bytes(modes) if multimodal else b"")
    assert megatron("read", prefix, multimodal) == [dtype, sequences, bounds, modes if multimodal else None]


@given(st.sampled_from([(100, "uint16"), (65_499, "uint16"), (65_500, "int32"), (2**31 - 1, "int32")]), st.data())
@settings(max_examples=30, deadline=None)
def test_megatron_reads_what_our_writer_writes(megatron, prefix, kind, data):
    vocab_size, dtype = kind
    documents = data.draw(st.lists(st.lists(st.integers(0, vocab_size - 1), max_size=5), max_size=4))
    documents.append([0, vocab_size - 1])
    with IndexedDatasetWriter(prefix, vocab_size) as writer:
        for document in documents:
            writer.add_document(document)
    assert megatron("read", prefix, False) == [dtype, documents, list(range(len(documents) + 1)), None]


def test_a_dataset_without_a_token_is_refused_which_megatron_writes(megatron, prefix):
    megatron("write", prefix, "int32", [[[]], []], None)
    with pytest.raises(DataError, match=r"text\.v1\.idx lists not one token; write it again from text that is not"):
        IndexedDataset(prefix)
