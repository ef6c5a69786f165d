"""A small classifier of a labelled data set, where no Inception is at hand."""

import numpy as np

from jit_jax.evaluation.distances import Moments


class Classifier:
    """A small classifier of a labelled data set: its verdict, and its hidden layer as features, where no Inception is at hand.

    images uint8 [N, H, W, C] and labels int [N] are of the training split. Its numbers are not FID and are named otherwise.
    """

    def __init__(self, images, labels):
        from sklearn.neural_network import MLPClassifier

        self.net = MLPClassifier((128,), max_iter=100, random_state=0).fit(
            self._rows(images), labels
        )

    @staticmethod
    def _rows(images):
        """Luminance, flat, of images made smaller to at most 32 × 32 or a little more."""
        gray, by = images.mean(-1), max(1, images.shape[1] // 32)
        side = gray.shape[1] // by
        gray = gray[:, : side * by, : side * by].reshape(len(gray), side, by, side, by).mean((2, 4))
        return gray.reshape(len(gray), -1) / 127.5 - 1

    def confidence(self, images) -> np.ndarray:
        """The probability of the likeliest class, [N]."""
        return self.net.predict_proba(self._rows(images)).max(1)

    def moments(self, images, moments: Moments | None = None) -> Moments:
        """Of the hidden layer, 128 wide; added to `moments` when they are given."""
        moments = Moments(128) if moments is None else moments
        moments.update(
            np.maximum(self._rows(images) @ self.net.coefs_[0] + self.net.intercepts_[0], 0)
        )
        return moments
