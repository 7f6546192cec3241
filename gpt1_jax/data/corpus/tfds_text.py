"""Running text of TensorFlow Datasets: an example is a document."""

import io

from gpt1_jax.data import tfds as sets
from gpt1_jax.data.corpus.documents import Corpus, fingerprint
from gpt1_jax.errors import UserError
from gpt1_jax.files import import_package, import_tensorflow


def open_tfds(name: str, download: bool = True) -> Corpus:
    """Opens a set with a feature `text` or `book_text`; prepares it first if need be, and if `download` allows it.

    Raises UserError: it cannot be prepared, or holds no text.
    """
    tfds = import_package('tensorflow_datasets', 'tfds: sources cannot be read')
    builder = sets.open_builder(name, download)
    splits = [split for split in ('train', 'validation') if split in builder.info.splits]
    if 'train' not in splits:
        raise UserError(f'tfds:{name}: It has no train split, only {", ".join(builder.info.splits)}. Use another set.')
    feature = next((f for f in ('book_text', 'text') if f in builder.info.features), None)
    if feature is None:
        raise UserError(
            f'tfds:{name}: The set has no feature book_text or text, only '
            f'{", ".join(builder.info.features)}. Use another set.'
        )
    if builder.info.file_format == tfds.core.FileFormat.ARRAY_RECORD:
        raise UserError(
            f'tfds:{name}: The set in {builder.data_dir} is in array_record files. Build it again with '
            '--file_format=tfrecord.'
        )
    counts = {split: builder.info.splits[split].num_examples for split in splits}

    def names():
        return (f'{split}/{i}' for split in splits for i in range(counts[split]))

    def files(first):
        tf = import_tensorflow()
        in_order = tfds.ReadConfig(interleave_cycle_length=1)
        for split in splits:
            skipped = min(first, counts[split])
            first -= skipped
            if skipped < counts[split]:
                examples = builder.as_dataset(
                    split=f'{split}[{skipped}:]',
                    read_config=in_order,
                    shuffle_files=False,
                    decoders=tfds.decode.PartialDecoding({feature: True}),
                )
                try:
                    for example in examples.as_numpy_iterator():
                        yield io.BytesIO(example[feature])
                except tf.errors.OpError as error:
                    raise sets.damaged(name, builder) from error

    return Corpus(
        f'tfds:{name}',
        sum(counts.values()),
        sum(builder.info.splits[s].num_bytes for s in splits),
        fingerprint(builder.info.full_name, counts),
        names,
        files,
        'validation/' if 'validation' in splits else None,
    )
