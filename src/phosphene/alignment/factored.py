"""Maps of low rank as two thin factors, beside a sparse rest: what n shared stimuli tell has at most the rank n."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse
from scipy.sparse import linalg

__all__ = ["Damped", "Factored", "Matrix", "factored", "onto", "parts_of", "reached"]

Matrix = Any  # scipy.sparse.csr_array, ndarray or Factored: scipy has no types


@dataclass(frozen=True)
class Factored:
    """The matrix ``left @ right + rest`` of shape ``(V_s, V)``, which is never made whole to be applied.

    Attributes
    ----------
    left : (V_s, r) ndarray
    right : (r, V) ndarray
    rest : (V_s, V) csr_array or None

    Examples
    --------
    >>> matrix = Factored(np.ones((3, 1)), np.array([[1.0, 2.0]]))
    >>> (np.ones((1, 3)) @ matrix).tolist(), matrix.shape
    ([[3.0, 6.0]], (3, 2))
    """

    left: np.ndarray
    right: np.ndarray
    rest: Any = None

    __array_ufunc__ = None  # a product with an array on the left is left to `__rmatmul__`

    @property
    def shape(self) -> tuple[int, int]:
        """(V_s, V)."""
        return self.left.shape[0], self.right.shape[1]

    def __rmatmul__(self, rows: np.ndarray) -> np.ndarray:
        product = (rows @ self.left) @ self.right
        return product if self.rest is None else np.asarray(product + rows @ self.rest)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        whole = self.left @ self.right
        if self.rest is not None:
            whole = np.asarray(whole + self.rest)
        return whole if dtype is None else whole.astype(dtype, copy=False)

    def astype(self, dtype: Any) -> Factored:
        """With numbers of another type."""
        rest = None if self.rest is None else self.rest.astype(dtype)
        return Factored(self.left.astype(dtype, copy=False), self.right.astype(dtype, copy=False), rest)

    def pinv(self, rcond: float) -> Matrix:
        """Pseudo-inverse ``(V, V_s)``, without singular values below `rcond` of the largest.

        From the small product of both triangles, ``left = Q_1 R_1`` and ``right.T = Q_2 R_2``. Beside a rest there is
        no such product, and singular values are damped instead of cut off (`Damped`).
        """
        if self.rest is not None:
            return Damped.of(self, rcond)
        (first, one), (second, two) = (np.linalg.qr(each.astype(np.float64)) for each in (self.left, self.right.T))
        u, values, vt = np.linalg.svd(one @ two.T, full_matrices=False)
        kept = values > rcond * values.max(initial=0.0)
        back = Factored(second @ vt[kept].T / values[kept], (first @ u[:, kept]).T)
        return back.astype(self.left.dtype)


@dataclass(frozen=True)
class Damped:
    r"""What :math:`(M M^T + d^2 I)^{-1}` makes of the rows of a product with :math:`M^T`, without a whole matrix.

    A row y becomes the x with the least :math:`|x M - y|^2 + d^2 |x|^2`, by LSMR (Fong & Saunders, 2011): singular
    values far above the damping d are inverted, those far below are left out.

    Attributes
    ----------
    matrix : Factored
        M, of shape (V_s, V).
    damping : float
        d.
    """

    matrix: Factored
    damping: float

    __array_ufunc__ = None  # as of `Factored`

    @classmethod
    def of(cls, matrix: Factored, share: float) -> Damped:
        """Damped by a share of the largest singular value."""
        start = np.ones(min(matrix.shape))
        largest = linalg.svds(_operator(matrix), k=1, v0=start, return_singular_vectors=False)
        return cls(matrix, share * float(largest[0]))

    def __rmatmul__(self, rows: np.ndarray) -> np.ndarray:
        operator, rows = _operator(self.matrix), np.asarray(rows, dtype=np.float64)
        words = {"damp": self.damping, "atol": 1e-8, "btol": 1e-8, "maxiter": 2000}
        found = [linalg.lsmr(operator, row, **words)[0] for row in np.atleast_2d(rows)]
        return np.stack(found).reshape(*rows.shape[:-1], -1)


def _operator(matrix: Factored) -> Any:
    """The transposed of a map, ``(V, V_s)``, as what can be applied."""
    return linalg.LinearOperator(
        shape=matrix.shape[::-1],
        matvec=lambda x: np.ravel(x) @ matrix,
        rmatvec=lambda y: matrix.left @ (matrix.right @ np.ravel(y)) + matrix.rest @ np.ravel(y),
        dtype=np.float64,
    )


def factored(left: np.ndarray, right: np.ndarray, rest: Any = None) -> Matrix:
    """The matrix ``left @ right + rest``, as factors where these are fewer numbers than the whole, else dense."""
    matrix = Factored(left, right, rest)
    return matrix if left.size + right.size < left.shape[0] * right.shape[1] else np.asarray(matrix)


def onto(matrix: Matrix, places: np.ndarray) -> Matrix:
    """The part of a map that leads onto some of the places."""
    if not isinstance(matrix, Factored):
        return matrix[:, places]
    return Factored(matrix.left, matrix.right[:, places], None if matrix.rest is None else matrix.rest[:, places])


def reached(matrix: Matrix, axis: int) -> np.ndarray:
    """Places (axis 0) or voxels (axis 1) that a map has anything to do with, boolean."""
    if isinstance(matrix, Factored):
        known = np.abs(matrix.right if axis == 0 else matrix.left).sum(axis=axis) > 0
        return known if matrix.rest is None else known | reached(matrix.rest, axis)
    return np.asarray(abs(matrix).sum(axis=axis)).ravel() > 0


def parts_of(matrix: Matrix) -> dict[str, np.ndarray]:
    """The arrays of a map by name: ``matrix``; ``data, indices, indptr``; or ``left, right`` and those of the rest."""
    if isinstance(matrix, Factored):
        return {"left": matrix.left, "right": matrix.right, **({} if matrix.rest is None else parts_of(matrix.rest))}
    if not sparse.issparse(matrix):
        return {"matrix": matrix}
    # indices are 32 or 64 bits wide as scipy likes: the width is no part of what the map says
    indices = {"indices": matrix.indices.astype(np.int64), "indptr": matrix.indptr.astype(np.int64)}
    return {"data": matrix.data, **indices}
