"""Text-like documents with long-range structure, and the probability that each token had given all before it.

Document d is a pure function of (data.seed, split, d): a topic, a name, then words until the end token. The
topic decides how frequent each word is and the name comes back throughout, so what stood at the beginning,
hundreds of tokens ago, still predicts; a set phrase is predicted by the last word alone. The entropy rate is
known exactly.
"""

from __future__ import annotations

import functools

import numpy as np

from odist.config.schema import SyntheticTextConfig
from odist.errors import UserError
from odist.rng import derive, mix, uniform

END = 0  # the token that ends a document; then come topics, names, words
LONGEST = 1 << 20  # tokens; no document comes near it
TOPIC_SPREAD = 1.0  # how far a topic moves a word, in units of the logarithm of its rank


class SyntheticText:
    """A generator of documents: topic, name, body, end.

    Every token of the body is the end with probability `hazard`, otherwise the name (`recall`), a follower of
    the token before (`phrase`), or a word by the topic's frequencies.

    config: sizes and strengths; seed: `data.seed`, fixes the generator and all its documents
    """

    def __init__(self, config: SyntheticTextConfig, *, seed: int) -> None:
        self.config = config
        self.seed = seed
        self.first_word = 1 + config.topics + config.names
        self.num_words = config.vocabulary - self.first_word
        if self.num_words < config.followers or config.document_length < 4 or config.recall + config.phrase >= 1:
            raise UserError(
                f"task.synthetic: vocabulary={config.vocabulary} leaves {self.num_words} words beside the end, topics and "
                f"names; document_length={config.document_length}, recall + phrase = {config.recall + config.phrase:g}. "
                "Expected at least `followers` words, at least 4 tokens and a sum below 1."
            )
        self.hazard = 1 / (config.document_length - 2)
        share = 1.0 / np.arange(1, self.num_words + 1) ** config.zipf
        self.share = share / share.sum()  # of the word of each rank
        self.word_edges = np.cumsum(self.share)
        self._make_topics()
        self._make_followers()

    def _make_topics(self) -> None:
        config, words = self.config, self.num_words
        cells = np.arange(config.topics * words, dtype=np.uint64)
        draw = uniform(cells, key=derive(self.seed, "topics")).reshape(config.topics, words)
        moved = np.log(np.arange(1, words + 1)) + TOPIC_SPREAD * np.log(draw / (1 - draw))
        self.by_rank = np.argsort(moved, axis=1, kind="stable") + self.first_word  # [topics, rank] -> token
        self.frequency = np.zeros((config.topics, config.vocabulary))  # [topics, token]
        np.put_along_axis(self.frequency, self.by_rank, np.broadcast_to(self.share, self.by_rank.shape), axis=1)

    def _make_followers(self) -> None:
        config = self.config
        cells = np.arange(config.vocabulary * config.followers, dtype=np.uint64)
        rank = np.searchsorted(
            self.word_edges, uniform(cells, key=derive(self.seed, "followers")) * self.word_edges[-1]
        )
        self.followers = (rank + self.first_word).reshape(-1, config.followers)  # [token, followers] -> token
        share = 1.0 / np.arange(1, config.followers + 1)
        self.follower_share = share / share.sum()
        self.follower_edges = np.cumsum(self.follower_share)
        same = self.followers[:, :, None] == self.followers[:, None, :]
        first = np.argmax(same, axis=2) == np.arange(config.followers)
        self.follower_mass = first * (same * self.follower_share).sum(axis=2)  # a repeated follower counts once

    def lengths(self, numbers: np.ndarray, split: str) -> np.ndarray:
        """Tokens of each document, int64 [n]: topic, name, a geometric body, end."""
        draw = uniform(numbers.astype(np.uint64), key=derive(self.seed, f"lengths {split}"))
        body = np.floor(np.log(draw) / np.log1p(-self.hazard)).astype(np.int64)
        return 3 + np.minimum(body, LONGEST - 3)

    def documents(self, numbers: np.ndarray, split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Documents `numbers` of a split, one after the other.

        numbers: int64 [n]. Returns lengths int64 [n], tokens int64 [sum of lengths] and the probability of each
        given all tokens of its document before it, float64
        """
        config, seed = self.config, self.seed
        lengths = self.lengths(numbers, split)
        starts = np.cumsum(lengths) - lengths
        owner = np.repeat(np.arange(len(numbers)), lengths)
        place = np.arange(int(lengths.sum())) - starts[owner]
        key = mix(numbers.astype(np.uint64), key=derive(seed, f"documents {split}"))
        with np.errstate(over="ignore"):
            cells = key[owner] + place.astype(np.uint64)
        kind, draw = uniform(cells, key=derive(seed, "kind")), uniform(cells, key=derive(seed, "draw"))
        topics = np.floor(draw[starts] * config.topics).astype(np.int64)
        names = np.floor(draw[starts + 1] * config.names).astype(np.int64) + 1 + config.topics

        rank = np.searchsorted(self.word_edges, draw * self.word_edges[-1])
        tokens = self.by_rank[topics[owner], rank]
        named, follows = kind < config.recall, (kind >= config.recall) & (kind < config.recall + config.phrase)
        tokens[named] = names[owner[named]]
        tokens[starts], tokens[starts + 1], tokens[starts + lengths - 1] = topics + 1, names, END
        follows[starts] = follows[starts + 1] = follows[starts + lengths - 1] = False
        self._follow(tokens, follows, draw)
        return lengths, tokens, self._probabilities(tokens, starts, lengths, owner, topics, names)

    def _follow(self, tokens: np.ndarray, follows: np.ndarray, draw: np.ndarray) -> None:
        """Fill in the tokens that follow the one before, those at depth 1 of a phrase first, in place."""
        places = np.arange(len(tokens))
        depth = places - np.maximum.accumulate(np.where(follows, 0, places))
        chosen = np.searchsorted(self.follower_edges, draw * self.follower_edges[-1])
        deep = np.flatnonzero(depth)
        deep = deep[np.argsort(depth[deep], kind="stable")]
        for at in np.split(deep, np.flatnonzero(np.diff(depth[deep])) + 1) if len(deep) else ():
            tokens[at] = self.followers[tokens[at - 1], chosen[at]]

    def _probabilities(
        self,
        tokens: np.ndarray,
        starts: np.ndarray,
        lengths: np.ndarray,
        owner: np.ndarray,
        topics: np.ndarray,
        names: np.ndarray,
    ) -> np.ndarray:
        config = self.config
        before = self.followers[tokens[np.maximum(np.arange(len(tokens)) - 1, 0)]]
        followed = (before == tokens[:, None]) @ self.follower_share
        by_topic = self.frequency[topics[owner], tokens]
        mixed = config.recall * (tokens == names[owner]) + config.phrase * followed
        mixed += (1 - config.recall - config.phrase) * by_topic
        probability = (1 - self.hazard) * mixed
        probability[starts], probability[starts + 1] = 1 / config.topics, 1 / config.names
        probability[starts + lengths - 1] = self.hazard
        return probability

    @functools.cached_property
    def entropy_rate(self) -> float:
        """Mean entropy of a token given all before it in its document, in nats, exactly.

        Entropy of one document divided by its mean length. The body is a Markov chain given topic and name;
        `visits` is how often, in expectation, its next token is drawn after each token.
        """
        config, alive = self.config, 1 - self.hazard
        topical = 1 - config.recall - config.phrase
        drawn = alive / self.hazard  # tokens of a body, in expectation
        ends = -(np.log(self.hazard) + drawn * np.log(alive))  # body or end, drawn + 1 times
        names = np.zeros(config.vocabulary)
        names[1 + config.topics : self.first_word] = 1 / config.names
        of_name = -config.recall * np.log(config.recall) if config.recall else 0.0
        chosen = 0.0
        for frequency in self.frequency:
            fixed = alive * ((1 + config.recall * drawn) * names + topical * drawn * frequency)
            visits = fixed
            for _ in range(2000):
                spread = (visits[:, None] * self.follower_mass).ravel()
                new = fixed + alive * config.phrase * np.bincount(
                    self.followers.ravel(), weights=spread, minlength=config.vocabulary
                )
                change, visits = float(np.abs(new - visits).sum()), new
                if change < 1e-12 * drawn:
                    break
            words = topical * frequency
            of_followers = _information(words[self.followers] + config.phrase * self.follower_mass)
            of_followers -= _information(words[self.followers])
            entropies = of_name + _information(words).sum() + (of_followers * (self.follower_mass > 0)).sum(axis=1)
            chosen += float(visits @ entropies) / config.topics
        document = np.log(config.topics) + np.log(config.names) + ends + chosen
        return float(document / config.document_length)


def _information(p: np.ndarray) -> np.ndarray:
    """-p ln p, 0 at 0."""
    return -p * np.log(np.where(p > 0, p, 1.0))
