"""Judges of whether an image shows one class of a small labelled data set, more than one of them.

A classifier that has seen clean images alone may be sure of what no person would read, and each
kind of classifier errs in its own way. All of these see 8×8 pixels and come from scikit-learn.
"""

from itertools import combinations

import numpy as np

SIDE = 8  # pixels along each side of the images that are judged
AT_MOST = 2000  # training images that judges are trained on
CLASSES = 20  # at most: support vector machines take fits for each pair of classes
FOLDS = 5  # of the calibration, and so the fewest images of a class


class Judges:
    """Logistic regression, nearest neighbours and support vector machines, trained when made.

    images: uint8 [N, H, W, C], H and W multiples of 8; labels: int [N]. `fits` says whether they
    are of a kind to be judged.
    """

    def __init__(self, images, labels):
        from sklearn.linear_model import LogisticRegression
        from sklearn.neighbors import KNeighborsClassifier

        self._judges = {
            'logistic': LogisticRegression(C=10, max_iter=1000),
            'knn': KNeighborsClassifier(5),
            'svc': PairwiseSVC(),
        }
        inputs = pixels(images)
        for judge in self._judges.values():
            judge.fit(inputs, labels)

    def confidence(self, images) -> dict[str, np.ndarray]:
        """By judge, the probability of the likeliest class: [n] each."""
        inputs = pixels(images)
        return {name: judge.predict_proba(inputs).max(1) for name, judge in self._judges.items()}


class PairwiseSVC:
    """Support vector machines, one for each pair of classes, calibrated by Platt's method.

    The probabilities of classes are those that agree best with the pairs', by the second method of
    Wu, Lin and Weng 2004, as in LIBSVM: what lies between classes or is like none is sure of none.
    """

    def fit(self, inputs, labels) -> None:
        """inputs: float [N, 64]; labels: int [N], FOLDS of each class or more."""
        from sklearn.calibration import CalibratedClassifierCV
        from sklearn.svm import SVC

        self._classes, self._pairs = np.unique(labels), {}
        for i, j in combinations(range(len(self._classes)), 2):
            first = labels == self._classes[i]
            rows = first | (labels == self._classes[j])
            machine = CalibratedClassifierCV(SVC(), cv=FOLDS, ensemble=False)
            self._pairs[i, j] = machine.fit(inputs[rows], first[rows])

    def predict_proba(self, inputs) -> np.ndarray:
        """Of every class in turn: float64 [N, K]."""
        K = len(self._classes)
        wins = np.zeros((len(inputs), K, K))  # [:, i, j]: i rather than j
        for (i, j), machine in self._pairs.items():
            wins[:, i, j] = machine.predict_proba(inputs)[:, 1]
            wins[:, j, i] = 1 - wins[:, i, j]
        return coupled(wins)


def coupled(wins) -> np.ndarray:
    """Probabilities p [N, K] that sum to 1 and agree best with those of pairs, [N, K, K].

    They make the sum of (wins[j, i] · p[i] − wins[i, j] · p[j])² over all pairs least, so solve
    linear equations, with one multiplier for the sum. The diagonal of wins is 0.
    """
    N, K, _ = wins.shape
    left = np.ones((N, K + 1, K + 1))
    left[:, K, K] = 0
    left[:, :K, :K] = -wins * wins.swapaxes(1, 2)
    left[:, range(K), range(K)] = (wins**2).sum(1)
    right = np.zeros((N, K + 1, 1))
    right[:, K] = 1
    return np.linalg.solve(left, right)[:, :K, 0]


def fits(labels) -> bool:
    """Whether every class has enough of the labels, and there are neither one nor many classes."""
    counts = np.unique(labels, return_counts=True)[1]
    return 2 <= len(counts) <= CLASSES and counts.min() >= FOLDS


def pixels(images) -> np.ndarray:
    """Luminance in [0, 1] at 8×8, each the mean of a rectangle of pixels: float64 [N, 64]."""
    N, H, W, _ = images.shape
    gray = images.mean(-1).reshape(N, SIDE, H // SIDE, SIDE, W // SIDE)
    return gray.mean((2, 4)).reshape(N, -1) / 255
