"""Judges of whether an image shows one class of a small labelled data set, more than one of them.

A classifier that has seen clean images alone may be sure of what no person would read, and each
kind of classifier errs in its own way. All of these see 8×8 pixels and come from scikit-learn.
"""

import numpy as np

SIDE = 8  # pixels along each side of the images that are judged
AT_MOST = 2000  # training images that judges are trained on
CLASSES = 50  # at most: a support vector machine takes a fit for each class
FOLDS = 5  # of the calibration, and so the fewest images of a class


class Judges:
    """Logistic regression, nearest neighbours and support vector machines, trained when made.

    images: uint8 [N, H, W, C], H and W multiples of 8; labels: int [N]. `fits` says whether they
    are of a kind to be judged. The support vector machines are one for each class, calibrated by
    Platt's method over held-out folds.
    """

    def __init__(self, images, labels):
        from sklearn.calibration import CalibratedClassifierCV
        from sklearn.linear_model import LogisticRegression
        from sklearn.multiclass import OneVsRestClassifier
        from sklearn.neighbors import KNeighborsClassifier
        from sklearn.svm import SVC

        calibrated = CalibratedClassifierCV(SVC(), cv=FOLDS, ensemble=False)
        self._judges = {
            'logistic': LogisticRegression(C=10, max_iter=1000),
            'knn': KNeighborsClassifier(5),
            'svc': OneVsRestClassifier(calibrated),
        }
        inputs = pixels(images)
        for judge in self._judges.values():
            judge.fit(inputs, labels)

    def confidence(self, images) -> dict[str, np.ndarray]:
        """By judge, the probability of the likeliest class: [n] each."""
        inputs = pixels(images)
        return {name: judge.predict_proba(inputs).max(1) for name, judge in self._judges.items()}


def fits(labels) -> bool:
    """Whether every class has enough of the labels, and there are neither one nor many classes."""
    counts = np.unique(labels, return_counts=True)[1]
    return 2 <= len(counts) <= CLASSES and counts.min() >= FOLDS


def pixels(images) -> np.ndarray:
    """Luminance in [0, 1] at 8×8, each the mean of a rectangle of pixels: float64 [N, 64]."""
    N, H, W, _ = images.shape
    gray = images.mean(-1).reshape(N, SIDE, H // SIDE, SIDE, W // SIDE)
    return gray.mean((2, 4)).reshape(N, -1) / 255
