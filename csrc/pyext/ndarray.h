/* ndarray.h — the only include of Python and NumPy: the limited API of 3.11, NumPy 2.0 or later. */
#ifndef SV_PYEXT_NDARRAY_H
#define SV_PYEXT_NDARRAY_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdbool.h>
#include <stdio.h> /* NumPy's header wants FILE; the limited Python.h brings none of these */
#include <stdlib.h>
#include <string.h>

#ifndef SVPY_IMPORTS_NUMPY
#define NO_IMPORT_ARRAY
#endif
#include <numpy/arrayobject.h>

#endif
