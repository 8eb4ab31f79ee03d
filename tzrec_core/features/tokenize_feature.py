"""`tokenize_feature`: the tokens of a text."""

import json
from functools import cached_property

from tzrec_core.errors import ConfigError
from tzrec_core.features.feature import BaseFeature


class TokenizeFeature(BaseFeature):
    """The tokens of a text, as ids. Read encoded (FG_NONE).

    `vocab_file` is a tokenizer.json of the `tokenizers` library; its highest token id gives the table's size.
    """

    @property
    def is_sparse(self) -> bool:
        """Always."""
        return True

    @property
    def value_dim(self) -> int:
        """0: any number of tokens."""
        return 0

    @cached_property
    def num_embeddings(self) -> int:
        """Rows of the embedding table.

        Raises:
            ConfigError: `vocab_file` is not set or is not a tokenizer.json.
        """
        path = self.explicit("vocab_file")
        if not path:
            raise ConfigError(f"{self.at()} must set vocab_file, a tokenizer.json.")
        try:
            with open(path, encoding="utf-8") as file:
                tokenizer = json.load(file)
            vocab = tokenizer["model"]["vocab"]
            ids = vocab.values() if isinstance(vocab, dict) else range(len(vocab))
            added = (token["id"] for token in tokenizer.get("added_tokens", ()))
            return max([*ids, *added]) + 1
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{self.at('vocab_file')} {path!r} is not a tokenizer.json: {error!r}.") from error

    def problems(self) -> list[str]:
        """See `BaseFeature.problems`."""
        found = super().problems()
        tokenizer_type = self.setting("tokenizer_type")
        if tokenizer_type != "bpe":
            found.append(f"{self.at('tokenizer_type')} {tokenizer_type!r} is not supported. Use 'bpe'.")
        return found
