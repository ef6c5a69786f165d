"""A small classifier of a labelled data set, and what it says about generated images.

It serves where no Inception is at hand. Its numbers are not FID and are named otherwise.
"""

import numpy as np

from jit_jax.evaluation import judges
from jit_jax.evaluation.distances import frechet
from jit_jax.evaluation.moments import Moments

WIDTH = 128  # of the hidden layer
AT_MOST = 10_000  # images that the classifier is trained on, and that it is held against
SURE = 0.7  # an image is readable when one class is likelier than this


class Classifier:
    """One hidden layer, trained when it is made.

    images: uint8 [N, H, W, C], labels: int [N], both of the training split.
    """

    def __init__(self, images, labels):
        from sklearn.neural_network import MLPClassifier

        self._net = MLPClassifier((WIDTH,), max_iter=100, random_state=0)
        self._net.fit(_inputs(images), labels)

    def confidence(self, images) -> np.ndarray:
        """The probability of the likeliest class, [N]."""
        return self._net.predict_proba(_inputs(images)).max(1)

    def predict(self, images) -> np.ndarray:
        """The likeliest class, int [N]."""
        return self._net.predict(_inputs(images))

    def features(self, images) -> np.ndarray:
        """The hidden layer, [N, WIDTH]."""
        linear = _inputs(images) @ self._net.coefs_[0] + self._net.intercepts_[0]
        return np.maximum(linear, 0)


def _inputs(images) -> np.ndarray:
    """Luminance in [−1, 1], flat, of images made smaller to at most 32 × 32 or a little more."""
    gray = images.mean(-1)
    by = max(1, gray.shape[1] // 32)
    side = gray.shape[1] // by
    gray = gray[:, : side * by, : side * by].reshape(len(gray), side, by, side, by).mean((2, 4))
    return gray.reshape(len(gray), -1) / 127.5 - 1


class ClassifierMetric:
    """`readable`, the share of images with a sure class, and `classifier_distance`.

    The latter is the Fréchet distance to held-out images on the classifier's features.
    `readable_held_out` says the first of held-out images and `classifier_distance_train` the second
    of training images: what a perfect model has. Where classes are few and have images enough,
    `readable_logistic`, `readable_knn` and `readable_svc` are of `judges.Judges`, each with its
    `…_held_out`. train, test: labelled `data.Source`s.
    """

    def __init__(self, train, test):
        images, labels = evenly_spread(train)
        held_out, _ = evenly_spread(test)
        self._classifier = Classifier(images, labels)
        self._judges = _judges(images, labels)
        self._held_out = self._moments(held_out)
        self._perfect = {}
        for name, sure in self._sure(held_out).items():
            self._perfect[f'{name}_held_out'] = float(np.mean(sure))
        self._perfect['classifier_distance_train'] = self._distance(self._moments(images))
        self.reset()

    def reset(self) -> None:
        self._generated = Moments(WIDTH)
        self._readable = {}  # by name: bool [n] of each update

    def update(self, images, conditioning: dict, truth) -> None:
        """images: uint8 [n, H, W, C]; the rest plays no part."""
        self._generated.update(self._classifier.features(images))
        for name, sure in self._sure(images).items():
            self._readable.setdefault(name, []).append(sure)

    def compute(self) -> dict[str, float]:
        found = {}
        for name, sure in self._readable.items():
            found[name] = float(np.mean(np.concatenate(sure)))
        return found | {'classifier_distance': self._distance(self._generated)} | self._perfect

    def _sure(self, images) -> dict[str, np.ndarray]:
        """By the name of a number, whether one class is likelier than SURE: bool [n]."""
        found = {'readable': self._classifier.confidence(images) > SURE}
        if self._judges:
            for name, confidence in self._judges.confidence(images).items():
                found[f'readable_{name}'] = confidence > SURE
        return found

    def _moments(self, images) -> Moments:
        moments = Moments(WIDTH)
        moments.update(self._classifier.features(images))
        return moments

    def _distance(self, moments: Moments) -> float:
        there = self._held_out
        return frechet(there.mean, there.covariance, moments.mean, moments.covariance)


def _judges(images, labels) -> judges.Judges | None:
    """None where there are too many classes, or too few images of one."""
    rows = evenly(len(images), judges.AT_MOST)
    return judges.Judges(images[rows], labels[rows]) if judges.fits(labels[rows]) else None


def evenly(count: int, at_most: int) -> np.ndarray:
    """At most so many of the numbers below `count`, the first and the last among them: int."""
    return np.linspace(0, count - 1, min(count, at_most)).astype(int)


def evenly_spread(source) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of at most AT_MOST examples over the whole source, always the same ones."""
    rows = [source[i] for i in evenly(len(source), AT_MOST)]
    return np.stack([row['image'] for row in rows]), np.stack([row['label'] for row in rows])
