"""Text to token ids and back: SentencePiece BPE or the released vocabulary, with one interface.

A tokenizer has `encode_batch`, `decode`, `save`, `vocab_size`, `newline_id`, `end_id`, `start_id`, `delimiter_id`,
`extract_id` and `fingerprint`. The ids 0..V-1 are the vocabulary's own. The release (Radford et al. 2018) puts three
special rows after them, `_start_`, `_delimiter_` and `_classify_`: here `start_id`, `delimiter_id` and `extract_id`.
"""

N_SPECIAL = 3
UNKNOWN_ID = 0  # the unknown piece of both kinds of vocabulary
